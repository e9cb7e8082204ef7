"""The RayService: what Ray Serve is told is valid, and the same as for any other cluster."""

from __future__ import annotations

import importlib
import re
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from loop.cli import main
from serving.app import build

ROOT = Path(__file__).parents[2]
SERVICE, POLICY = yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "rayservice.yaml").read_text())
TEMPLATE = SERVICE["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]
POD: dict[str, Any] = TEMPLATE["spec"]
RAY, WATCH = POD["containers"]


def serve_config() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])
    return found


def test_ray_serves_own_schema_accepts_the_configuration() -> None:
    read = ServeDeploySchema.model_validate(serve_config())
    assert [application.name for application in read.applications] == ["skewless"]
    with pytest.raises(ValueError, match="import_path"):
        ServeDeploySchema.model_validate({"applications": [{"name": "skewless"}]})


def test_it_is_the_one_of_serve_yaml_but_for_address_project_and_console() -> None:
    ours, plain = serve_config(), yaml.safe_load((ROOT / "serving" / "serve.yaml").read_text())
    [application] = ours["applications"]
    assert ours["http_options"].pop("host") == "0.0.0.0"
    del plain["http_options"]["host"]
    assert application["args"].pop("project") == RAY["volumeMounts"][0]["mountPath"] == "/project"
    del plain["applications"][0]["args"]["project"]
    module, _, function = application["args"].pop("console").partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert ours == plain


def test_the_application_takes_its_arguments() -> None:
    [application] = serve_config()["applications"]
    assert application["import_path"] == f"{build.__module__}:{build.__name__}"
    build(application["args"])


def test_every_variable_set_is_one_that_is_read(unread: Callable[[Iterable[str]], list[str]]) -> None:
    names = [each["name"] for each in RAY["env"]]
    assert unread(names) == []
    needed = {"RAY_SERVE_THROUGHPUT_OPTIMIZED", "RAY_SERVE_ENABLE_HA_PROXY", "RAY_USAGE_STATS_ENABLED"}
    assert needed <= set(names)


def test_others_reach_it_with_a_token_only_and_tokens_come_from_the_secret() -> None:
    [place] = [mount["mountPath"] for mount in RAY["volumeMounts"] if mount["name"] == "tokens"]
    tokens = {each["name"]: each["value"] for each in RAY["env"] if "TOKEN" in each["name"]}
    assert tokens == {
        "SKEWLESS_PREDICTION_TOKEN_FILE": f"{place}/prediction_tokens",
        "SKEWLESS_ADMIN_TOKEN_FILE": f"{place}/admin_tokens",
    }
    [secret] = [volume["secret"]["secretName"] for volume in POD["volumes"] if volume["name"] == "tokens"]
    text = (ROOT / "deploy" / "kubernetes" / "rayservice.yaml").read_text()
    made, _ = re.findall(r"kubectl create secret generic (.*)", text)
    assert made.split() == [secret, *(f"--from-file={value.rpartition('/')[2]}" for value in tokens.values())]


def test_whatever_opens_the_state_may_have_the_password_of_its_database() -> None:
    jobs = yaml.safe_load_all((ROOT / "deploy" / "schedules" / "cronjobs.yaml").read_text())
    pods = [job["spec"]["jobTemplate"]["spec"]["template"]["spec"] for job in jobs]
    containers = [*POD["containers"], *(each for pod in pods for each in pod["containers"])]
    assert len(containers) == 5
    text = (ROOT / "deploy" / "kubernetes" / "rayservice.yaml").read_text()
    [(secret, key)] = re.findall(r"kubectl create secret generic (\S+) --from-file=(\w+) +#", text)
    wanted = {"secretKeyRef": {"name": secret, "key": key, "optional": True}}
    for container in containers:
        assert [each.get("valueFrom") for each in container["env"] if each["name"] == "PGPASSWORD"] == [wanted]


def test_the_second_container_watches_releases() -> None:
    [program, *arguments] = WATCH["command"]
    assert program == "skewless"
    context = main.make_context("skewless", arguments)
    command: click.Command = main
    words = [*context._protected_args, *context.args]
    while words:
        assert isinstance(command, click.Group)
        command = command.commands[words.pop(0)]
    assert command is main.commands["rollout"].commands["watch"]  # type: ignore[attr-defined]


def test_ray_is_the_version_that_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"ray[serve]=={SERVICE['spec']['rayClusterConfig']['rayVersion']}" in project["dependencies"]


def test_all_of_a_project_shares_one_claim_and_one_user() -> None:
    [claim] = [volume for volume in POD["volumes"] if volume["name"] == "project"]
    jobs = yaml.safe_load_all((ROOT / "deploy" / "schedules" / "cronjobs.yaml").read_text())
    for job in jobs:
        assert claim in job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["volumes"]
    user = re.search(r"^USER (\d+)$", (ROOT / "deploy" / "Containerfile").read_text(), re.MULTILINE)
    assert user is not None
    assert POD["securityContext"]["runAsUser"] == POD["securityContext"]["fsGroup"] == int(user[1])


def test_every_volume_and_port_that_is_named_is_there() -> None:
    volumes = {volume["name"] for volume in POD["volumes"]}
    assert {mount["name"] for each in POD["containers"] for mount in each["volumeMounts"]} == volumes
    ports = {port["containerPort"] for port in RAY["ports"]}
    assert serve_config()["http_options"]["port"] in ports
    probes = [RAY[name]["httpGet"]["port"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert set(probes) <= ports
    allowed = {port["port"] for rule in POLICY["spec"]["ingress"] for port in rule["ports"]}
    assert allowed == {serve_config()["http_options"]["port"], 8265}
    assert POLICY["spec"]["podSelector"]["matchLabels"].items() <= TEMPLATE["metadata"]["labels"].items()
