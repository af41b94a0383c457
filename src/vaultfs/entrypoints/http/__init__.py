"""The HTTP API: `app.Api` is a plain ASGI application over an open vault."""
