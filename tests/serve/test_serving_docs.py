"""docs/serving.md: its curl lines run, its tables are complete; so is the OpenAPI description."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mapstack.endpoint import FIELDS, STATUS, Endpoint
from tests.serve.asked import PROMPTS, ask, content
from tests.serve.running import ROOT, Running

TEXT = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
SCHEMAS = yaml.safe_load((ROOT / "serve" / "openapi.yaml").read_text(encoding="utf-8"))["components"]["schemas"]


def test_every_curl_line_gets_its_answer(server: Running, image: bytes, tmp_path: Path) -> None:
    (block,) = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    assert block.count("\ncurl ") == 6
    script = block.replace("out/serve/key_file.json", str(server.folder / "key_file.json"))
    script = script.replace("127.0.0.1:8080", f"127.0.0.1:{server.config.server.inference_port}")
    (tmp_path / "x-ray.png").write_bytes(image)
    # A line of its own after every answer.
    script = re.sub(r"^curl -sS", r"curl -sS --fail-with-body -w '\\n'", script, flags=re.MULTILINE)
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, (run.stdout, run.stderr)
    answers = [json.loads(line) for line in run.stdout.splitlines() if line.strip()]
    assert [sorted(answer)[-1] for answer in answers] == ["predictions", "predictions", "unit", "unit", "explanations"]
    assert [row["name"] for row in answers[0]["predictions"]] == ["small left pleural effusion", "no pleural effusion"]
    assert answers[2]["maps"][0]["name"] == "left pleural effusion rather than no pleural effusion"
    assert answers[4]["explanations"][0]["maps"][0]["name"] == "left pleural effusion"
    assert (tmp_path / "heat-map.png").read_bytes().startswith(b"\x89PNG")


def test_every_field_and_every_code_is_documented() -> None:
    for name in FIELDS:
        assert f"| `{name}` |" in TEXT
    for code in STATUS:
        assert f"`{code}`" in TEXT
    assert set(SCHEMAS["Request"]["properties"]) == set(FIELDS)


@pytest.mark.parametrize("wants_maps", [True, False])
def test_answers_are_as_described(endpoint: Endpoint, image: bytes, wants_maps: bool) -> None:
    answer = content(
        ask(endpoint, image, prompts=PROMPTS, method="gradient", output=["png", "npy"], wants_maps=wants_maps)
    )
    schema = SCHEMAS["Explanations" if wants_maps else "Predictions"]
    assert_described(answer, schema)
    refusal = ask(endpoint, image, prompts=[])
    assert_described(json.loads(refusal.body), SCHEMAS["Refusal"])


def assert_described(value: Any, schema: dict[str, Any]) -> None:
    """Check that objects have the required keys and no others than those described."""
    if "$ref" in schema:
        schema = SCHEMAS[schema["$ref"].rsplit("/", 1)[1]]
    if isinstance(value, dict) and "properties" in schema:
        assert set(schema.get("required", [])) <= set(value)
        assert set(value) <= set(schema["properties"])
        for key, each in value.items():
            assert_described(each, schema["properties"][key])
    if isinstance(value, list):
        for each in value:
            assert_described(each, schema["items"])
