"""MLflow."""

from pathlib import Path

from attnwatch.loggers.base import Draw, Logger
from attnwatch.plugins import register


@register
class MLflowLogger(Logger):
    """MLflow: numbers, images as artifacts `TAG/step_STEP.png`, and the page about the run as an artifact."""

    name = "mlflow"
    class_names = ("MLFlowLogger", "MLflowCallback")

    def log_images(self, draw: Draw, step: int) -> None:
        import mlflow

        for tag, image in draw().items():
            file = f"{tag}/step_{step}.png"
            if hasattr(self.target, "run_id"):
                self.target.experiment.log_image(self.target.run_id, image, file)
            else:  # the transformers callback writes to the current run
                mlflow.log_image(image, file)

    def log_page(self, page: Path) -> None:
        import mlflow

        if hasattr(self.target, "run_id"):
            self.target.experiment.log_artifact(self.target.run_id, str(page))
        else:
            mlflow.log_artifact(str(page))
