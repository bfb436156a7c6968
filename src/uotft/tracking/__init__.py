"""MLflow: what is sent, what is read back, and the page. The only package that imports it."""
