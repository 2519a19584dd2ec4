"""Separating mixes and files: settings, methods, windows in and blocks out.

Each name is imported when it is first asked for; ``__init__.pyi`` says where from.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
