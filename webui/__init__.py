"""The pages: Jinja templates, one context dataclass per page, static files."""
