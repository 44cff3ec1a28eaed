"""A step of a Kubeflow pipeline that reads a model: two annotations on its task.

Compile it with `kfp dsl compile --py pipeline.py --output pipeline.yaml`. Change: the image, the command, the model.
"""

from kfp import dsl, kubernetes  # pip install kfp kfp-kubernetes


@dsl.container_component
def evaluate(data: str) -> dsl.ContainerSpec:
    """Reads the weights in /mnt/models."""
    return dsl.ContainerSpec(
        image="registry.example/evaluate:1",
        command=["python3", "evaluate.py"],
        args=["--model", "/mnt/models", "--data", data],
    )


@dsl.pipeline(name="evaluate")
def pipeline(data: str = "s3://evaluations/mmlu") -> None:
    """Evaluates a model that is in the nodes' cache."""
    task = evaluate(data=data)
    task.set_caching_options(enable_caching=False)  # its keys don't know of the weights, nor of a new version of them
    kubernetes.add_pod_annotation(task, "cacheagent.io/model", "llama-3-8b")
    kubernetes.add_pod_annotation(task, "cacheagent.io/containers", "main")  # the step's own, always called so
