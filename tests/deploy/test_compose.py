"""The compose file: only what exists is run, mounted, read and scraped, and nobody else reaches a port."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy.engine import make_url

from asof.repository import load_config
from contracts.settings import locate
from loop.cli import main
from serving.access import Access, AccessSettings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
TEXT = (DEPLOY / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if service["image"].startswith("skewless"))
STORES = sorted(file.stem for file in (DEPLOY / "stores").glob("*.yaml"))


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())
    return found


def filled(value: str, **chosen: str) -> str:
    """As Compose puts variables in: what was chosen, or the default."""
    return re.sub(r"\$\{(\w+)(?::[-?]([^}]*))?\}", lambda found: chosen.get(found[1], found[2] or ""), value)


def mounts(service: str) -> dict[str, str]:
    """Where in the container, to which folder or file beside the compose file; volumes left out."""
    places = [filled(each).removesuffix(":ro").split(":") for each in SERVICES[service].get("volumes", ())]
    return {target: source for source, target in places if source.startswith(".")}


def test_every_published_port_is_on_loopback() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(published) >= 4
    assert [port for port in published if not re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)] == []
    assert [name for name, service in SERVICES.items() if "network_mode" in service] == []
    assert [name for name in STORES if "ports" in SERVICES[name] or SERVICES[name]["networks"] != ["stores"]] == []
    assert COMPOSE["networks"]["stores"] == {"internal": True}


def test_the_state_that_the_page_puts_into_postgres_is_in_the_database_that_runs(tmp_path: Path) -> None:
    [settings] = re.findall(r"```toml\n(\[state\].*?)```", (ROOT / "docs" / "deploy.md").read_text(), re.DOTALL)
    (tmp_path / "skewless.toml").write_text(settings)
    url, server = make_url(locate(tmp_path).state_url), SERVICES["postgres"]["environment"]
    assert (url.host, url.username, url.database) == ("postgres", server["POSTGRES_USER"], server["POSTGRES_DB"])
    for name in OURS:
        assert SERVICES[name]["environment"]["PGPASSWORD"] == server["POSTGRES_PASSWORD"]


def test_what_is_served_is_what_is_published() -> None:
    [_, name, *arguments] = [filled(word) for word in SERVICES["serving"]["command"]]
    parsed = main.commands[name].make_context(name, arguments).params
    inside = {int(port.rpartition(":")[2]) for port in SERVICES["serving"]["ports"]}
    assert inside == {parsed["port"], parsed["grpc_port"]}


@pytest.mark.parametrize("service", OURS)
def test_every_command_exists(service: str) -> None:
    [program, name, *arguments] = [filled(word) for word in SERVICES[service]["command"]]
    assert program == "skewless"
    main.commands[name].make_context(name, arguments)


@pytest.mark.parametrize("service", OURS)
def test_every_variable_set_is_one_that_is_read(service: str, unread: Callable[[Iterable[str]], list[str]]) -> None:
    assert unread(SERVICES[service]["environment"]) == []
    assert unread(["SKEWLESS_PREDICTION_TOKENS_FILE"]) == ["SKEWLESS_PREDICTION_TOKENS_FILE"]


def test_the_variables_of_the_file_are_those_of_the_example() -> None:
    example = re.findall(r"^(\w+)=", (DEPLOY / "env.example").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?<!\$)\$\{(\w+)", TEXT)) | {"COMPOSE_PROFILES"} == set(example)


def test_no_secret_has_a_value_in_the_file() -> None:
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|TOKEN", name):
                assert value.startswith(("/run/secrets/", "${STORE_PASSWORD")), name
                assert value.startswith("/run/secrets/") == name.endswith("_FILE"), name
                assert not name.endswith("_FILE") or value.rpartition("/")[2] in service["secrets"], name
    assert "STORE_PASSWORD=\n" in (DEPLOY / "env.example").read_text()
    assert {secret["file"] for secret in COMPOSE["secrets"].values()} == {
        f"./secrets/{name}" for service in SERVICES.values() for name in service.get("secrets", ())
    }
    assert (DEPLOY / ".gitignore").read_text().split() == [".env", "secrets/"]


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_what_is_mounted_is_there(service: str) -> None:
    assert [source for source in mounts(service).values() if not (DEPLOY / source).exists()] == []
    assert set(SERVICES[service].get("depends_on", ())) <= set(SERVICES)
    assert set(SERVICES[service]["networks"]) <= set(COMPOSE["networks"])


@pytest.mark.parametrize("store", STORES)
def test_each_store_is_the_examples_repository_with_another_online_store(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORE_PASSWORD", "a-secret")
    shutil.copy(DEPLOY / "stores" / f"{store}.yaml", tmp_path / "feature_store.yaml")
    online = load_config(tmp_path).online_store
    if store == "redis":
        from feast.infra.online_stores.redis import RedisOnlineStore

        [node], options = RedisOnlineStore._parse_connection_string(online.connection_string)
        assert (node, options) == ({"host": store, "port": "6379"}, {"password": "a-secret"})
    else:
        server = SERVICES[store]["environment"]
        assert (online.host, online.port, online.password) == (store, 5432, "a-secret")
        assert (online.user, online.database) == (server["POSTGRES_USER"], server["POSTGRES_DB"])
    assert SERVICES[store]["profiles"] == [store]  # what STORE and COMPOSE_PROFILES choose together
    example = yaml.safe_load((ROOT / "feature_repo" / "feature_store.yaml").read_text())
    assert load(f"stores/{store}.yaml") | {"online_store": None} == example | {"online_store": None}


class TestWatching:
    def test_prometheus_scrapes_and_alerts_as_the_tested_configuration_does(self) -> None:
        plain, own = load("prometheus/prometheus.yml"), load("prometheus/compose.yml")
        [scrape] = own["scrape_configs"]
        assert scrape.pop("authorization") == {"credentials_file": "/run/secrets/prometheus_token"}
        [host, port] = scrape["static_configs"][0]["targets"][0].split(":")
        assert host == "serving"
        assert f"127.0.0.1:{port}:{port}" in SERVICES[host]["ports"]
        scrape["static_configs"] = plain["scrape_configs"][0]["static_configs"]
        assert own == plain
        assert mounts("prometheus") == {
            "/etc/prometheus/prometheus.yml": "./prometheus/compose.yml",
            "/etc/prometheus/alerts.yml": "./prometheus/alerts.yml",
        }
        assert "prometheus_token" in SERVICES["prometheus"]["secrets"]
        assert set(SERVICES["prometheus"]["networks"]) & set(SERVICES["serving"]["networks"]) >= {"watching"}

    def test_the_configuration_passes_promtool(self) -> None:
        promtool = shutil.which("promtool")
        if promtool is None:
            pytest.skip("promtool is not on PATH: apt-get install prometheus")
        command = [promtool, "check", "config", "--syntax-only", "compose.yml"]
        done = subprocess.run(command, cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def test_grafana_finds_the_dashboard_and_prometheus(self) -> None:
        [source] = load("grafana/datasources.yaml")["datasources"]
        assert source["url"] == "http://prometheus:9090"
        assert "127.0.0.1:9090:9090" in SERVICES["prometheus"]["ports"]
        [provider] = load("grafana/dashboards.yaml")["providers"]
        found = {Path(at).parent.as_posix(): source for at, source in mounts("grafana").items()}
        assert found[provider["options"]["path"]] == "./grafana/skewless.json"


def test_the_steps_of_the_page_make_secrets_that_fit_together(tmp_path: Path) -> None:
    [steps] = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "deploy.md").read_text(), re.DOTALL)
    (tmp_path / "deploy").mkdir()
    shutil.copy(DEPLOY / "env.example", tmp_path / "deploy")
    subprocess.run(["bash", "-euc", steps], cwd=tmp_path, check=True, env={"PATH": os.environ["PATH"]})
    for secret in COMPOSE["secrets"].values():
        assert (tmp_path / "deploy" / secret["file"]).read_text().strip()
    assert re.search(r"^STORE_PASSWORD=[0-9a-f]{48}$", (tmp_path / "deploy" / ".env").read_text(), re.MULTILINE)
    secrets = tmp_path / "deploy" / "secrets"
    names = {
        name: str(secrets / Path(value).name)
        for name, value in SERVICES["serving"]["environment"].items()
        if name.endswith("_TOKEN_FILE")
    }
    access = Access(AccessSettings.of(names))
    header = f"Bearer {(secrets / 'prometheus_token').read_text().strip()}"
    assert access.check("prediction", header) == "prometheus"
    assert access.guards("administration")
