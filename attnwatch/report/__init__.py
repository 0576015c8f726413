"""The model page: what a saved model attends to, relies on and knows, and how sure it is, in one HTML file."""
