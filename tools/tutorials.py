"""Executes the tutorials on the Lens kernel and stores their outputs in them (`make tutorials`)."""

from pathlib import Path

import nbformat

from lens_magic.demo_run import client_of

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
KEPT = ("kernelspec", "language_info")


def is_empty(output: nbformat.NotebookNode) -> bool:
    """Whether an output is a display that was cleared, as progress bars are."""
    is_display = output.output_type == "display_data" and set(output.data) == {"text/html", "text/plain"}
    return is_display and not output.data["text/html"].strip()


def main() -> None:
    """Execute all of them, in order."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        client_of(notebook, NOTEBOOKS, store_widget_state=False, record_timing=False).execute()
        notebook.metadata = {name: notebook.metadata[name] for name in KEPT}
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = [output for output in cell.outputs if not is_empty(output)]
        nbformat.write(notebook, path)
        print(f"{path.name} is executed")  # noqa: T201


if __name__ == "__main__":
    main()
