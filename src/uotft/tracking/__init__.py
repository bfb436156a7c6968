"""MLflow: store, outbox, delivery, reader, model registry and server. Only this package imports it.

Imports go one way: store <- outbox <- delivery <- session, sender; store <- reader, model_registry.
"""
