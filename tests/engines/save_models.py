"""Save the models that MLflow serves: `python save_models.py FOLDER` by an interpreter that has MLflow.

`adder` sums the columns of each row, however they come; `classifier` is one of scikit-learn, with a signature
that says what its columns are.
"""

from __future__ import annotations

import sys
from pathlib import Path

import mlflow
import numpy
import pandas
from mlflow.models import infer_signature
from sklearn.linear_model import LogisticRegression


class Adder(mlflow.pyfunc.PythonModel):
    """Adds up."""

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """The sum of each row's columns."""
        return numpy.asarray(model_input).sum(axis=1)


def main() -> None:
    folder = Path(sys.argv[1])
    mlflow.pyfunc.save_model(str(folder / "adder"), python_model=Adder(), pip_requirements=["mlflow"])
    points = pandas.DataFrame({"x": [0.0, 0.0, 10.0, 10.0], "y": [0.0, 1.0, 10.0, 11.0]})
    classes = numpy.array([0, 0, 1, 1])
    model = LogisticRegression().fit(points, classes)
    mlflow.sklearn.save_model(
        model,
        str(folder / "classifier"),
        signature=infer_signature(points, classes),
        pip_requirements=["mlflow", "scikit-learn"],
    )


if __name__ == "__main__":
    main()
