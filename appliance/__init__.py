"""The service on the device: API, chats, engine, discovery, security."""

__version__ = "0.1.0"
