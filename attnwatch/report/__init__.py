"""One self-contained HTML page about a model: what it attends to, relies on, knows, and how sure it is."""
