"""The nearest weights of a zoo, by what they do, what they learned from, and what they are.

from weightgen.retrieve import Index

index = Index.open("runs/zoo")
print(index.search(description="Is a product review positive or negative?", k=3).hits)
"""

from weightgen.retrieve.calibration import Calibration, Pair
from weightgen.retrieve.index import Index
from weightgen.retrieve.query import Filters, Found, Hit, Query
from weightgen.retrieve.vectors import VectorConfig, VectorIndex

__all__ = ["Calibration", "Filters", "Found", "Hit", "Index", "Pair", "Query", "VectorConfig", "VectorIndex"]
