"""List the studies, the benchmarks and the examples of loops, one per line."""

import ast
import pathlib
import pkgutil

HERE = pathlib.Path(__file__).parent


def main() -> None:
    """Print the name of each with the first line of its docstring."""
    print("Run one with python -m NAME; all but experiments.models take --help.\n")
    for module in pkgutil.walk_packages([str(HERE)], "experiments."):
        path = HERE.parent / (module.name.replace(".", "/") + ".py")
        if not module.ispkg and not path.stem.startswith("_"):
            doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            print(f"  {module.name:40} {doc.splitlines()[0]}")


if __name__ == "__main__":
    main()
