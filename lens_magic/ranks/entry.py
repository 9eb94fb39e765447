"""The script that a spawned rank runs: it imports this very package, wherever it is, and no other of its name.

Not ``python -m``, which would look for the package, and for everything the package imports, in the working folder first, where
a user may have files called ``queue.py``.
"""

import importlib.util
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    os.environ["LENS_WORKER"] = "1"  # here: in rank 0's environment, programs that the user starts would find it
    folder = Path(__file__).resolve().parent.parent
    spec = importlib.util.spec_from_file_location(folder.name, folder / "__init__.py", submodule_search_locations=[str(folder)])
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} is no package")
    package = sys.modules[folder.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    importlib.import_module(f"{folder.name}.ranks.worker").main()
