"""Numbered steps that bring a catalogue file to the present form; step ``n`` leads to ``PRAGMA user_version = n``.

Steps are only ever added. Every table has ``digest``, a hash of the other columns, so that ``verify`` sees a change
that SQLite itself cannot see. Columns that a later step adds count in it up to the last one that is not null, so that
the hashes of older rows stay right.
"""

from __future__ import annotations

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE layouts (
            fingerprint TEXT PRIMARY KEY, kind TEXT NOT NULL, base_model TEXT, body TEXT NOT NULL, digest TEXT NOT NULL
        )""",
        """CREATE TABLE records (
            id TEXT PRIMARY KEY, blob TEXT NOT NULL, layout TEXT NOT NULL REFERENCES layouts(fingerprint),
            kind TEXT NOT NULL, base_model TEXT, task TEXT, description TEXT, lineage TEXT, split TEXT,
            metrics TEXT NOT NULL, license TEXT, source TEXT, extra TEXT NOT NULL, created TEXT NOT NULL,
            digest TEXT NOT NULL
        )""",
        """CREATE TABLE tasks (
            name TEXT PRIMARY KEY, description TEXT NOT NULL, dataset TEXT NOT NULL, classes TEXT NOT NULL,
            class_names TEXT NOT NULL, split TEXT NOT NULL, digest TEXT NOT NULL
        )""",
        """CREATE TABLE datasets (
            name TEXT PRIMARY KEY, blob TEXT NOT NULL, description TEXT NOT NULL, license TEXT, digest TEXT NOT NULL
        )""",
        """CREATE TABLE failures (
            lineage TEXT PRIMARY KEY, reason TEXT NOT NULL, created TEXT NOT NULL, digest TEXT NOT NULL
        )""",
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, digest TEXT NOT NULL)",
        "CREATE INDEX records_by_lineage ON records(lineage, id)",
        "CREATE INDEX records_by_kind ON records(kind, lineage, id)",
        "CREATE INDEX records_by_base_model ON records(base_model, lineage, id)",
        "CREATE INDEX records_by_task ON records(task, lineage, id)",
        "CREATE INDEX records_by_split ON records(split, lineage, id)",
        "CREATE INDEX records_by_license ON records(license, lineage, id)",
        "CREATE INDEX records_by_blob ON records(blob)",
        "CREATE INDEX tasks_by_split ON tasks(split)",
    ),
    (
        "ALTER TABLE records ADD COLUMN dataset TEXT",
        "ALTER TABLE records ADD COLUMN revision TEXT",
        "ALTER TABLE records ADD COLUMN twin_key TEXT",
        "ALTER TABLE records ADD COLUMN twin_number REAL",
        "CREATE INDEX records_by_dataset ON records(dataset, lineage, id)",
        "CREATE INDEX records_by_twin ON records(twin_key, twin_number)",
    ),
)
