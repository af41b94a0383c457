"""The catalog in SQL: programs that any database can run, and SQLite that runs them."""
