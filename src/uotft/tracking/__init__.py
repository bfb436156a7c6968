"""MLflow: store, outbox, delivery, reader, model registry and server. Only this package imports it.

Imports point left: store <- outbox <- delivery <- session, sender; store <- reader, model_registry.
"""
