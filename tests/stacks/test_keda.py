"""KEDA's example by KEDA's own definition, from its Go module. KEDA itself doesn't run: it would set replicas."""

from __future__ import annotations

from typing import Any, Final

import jsonschema
import pytest
import yaml

from tests.manifests.test_versions import strictly
from tests.stacks.examples import read
from tests.stacks.go_modules import workshop

pytestmark = [pytest.mark.stacks, pytest.mark.timeout(600)]

VERSION: Final = "v2.17.2"
DEFINITION: Final = "config/crd/bases/keda.sh_scaledobjects.yaml"


@pytest.fixture(scope="module")
def schema() -> Any:
    """Of a ScaledObject, with unknown fields refused."""
    with workshop(f"keda-{VERSION}", "KEDA's definitions are in its module") as shop:
        definition = yaml.safe_load((shop.module("github.com/kedacore/keda/v2", VERSION) / DEFINITION).read_text())
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
