"""KEDA's example by KEDA's own definition, from its Go module. KEDA's operator acts on it in `test_autoscaling.py`."""

from __future__ import annotations

from typing import Any, Final

import jsonschema
import pytest

from tests.manifests.test_versions import strictly
from tests.stacks.examples import read
from tests.stacks.keda import definitions, source

pytestmark = [pytest.mark.stacks, pytest.mark.timeout(600)]

KIND: Final = "ScaledObject"


@pytest.fixture(scope="module")
def schema() -> Any:
    """Of a ScaledObject, with unknown fields refused."""
    (definition,) = (each for each in definitions(source()) if each["spec"]["names"]["kind"] == KIND)
    (version,) = definition["spec"]["versions"]
    found = strictly(version["schema"]["openAPIV3Schema"])
    return found | {"properties": found["properties"] | {"metadata": {}}}


def test_the_example_is_one_of_kedas(schema: Any) -> None:
    """As it is; and with a misspelt field it isn't (the positive control)."""
    (scaled,) = read("autoscaling", "keda.yaml")
    jsonschema.validate(scaled, schema)
    scaled["spec"]["maxReplicas"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplicas"):
        jsonschema.validate(scaled, schema)
