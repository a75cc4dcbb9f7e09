"""The best weights for a task, whichever way they come: candidates, one budget, one verdict.

from weightgen import jobs

result = jobs.solve(data="tickets.csv", description="Which team should answer?", base=BASE, out="adapter")
print(result.summary())
"""
