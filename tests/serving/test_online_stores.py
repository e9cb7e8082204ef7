"""The plan on Feast's online stores: what Feast writes is read, servers come and go, nothing stale is served."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from cryptography import x509
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import feast_value_type_to_python_type, python_values_to_proto_values
from feast.value_type import ValueType
from hypothesis import given
from hypothesis import strategies as st

from asof.materialize import materialize
from asof.wire import decoder, key_encoder
from serving.online import StoreUnavailable
from serving.online_feast import _parsed
from serving.plan import compile_plan
from tests.certificates import self_signed
from tests.redis_servers import RedisServer, free_port

NOW = datetime(2024, 3, 5, 10, 30, tzinfo=UTC)
HOUR = NOW.replace(minute=0)
ASKED = {"depot_id": ["north"], "courier_id": [7]}
ANSWER = {"temperature": [21.5], "age": [27]}


def yaml_of(settings: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{name}: {value!r}" for name, value in settings.items()) + "}"


@pytest.fixture
def redis_couriers(make_project: Any, redis_server: Any, tmp_path: Path) -> Any:
    redis_server.flush()
    return make_project(tmp_path / "on_redis", yaml_of(with_limit(redis_server.online_store)))


@pytest.fixture
def redis_cluster_couriers(make_project: Any, redis_cluster: Any, tmp_path: Path) -> Any:
    redis_cluster.flush()
    return make_project(tmp_path / "on_cluster", yaml_of(with_limit(redis_cluster.online_store)))


@pytest.fixture
def redis_sentinel_couriers(make_project: Any, redis_sentinel: Any, tmp_path: Path) -> Any:
    return make_project(tmp_path / "on_sentinel", yaml_of(with_limit(redis_sentinel.online_store)))


def with_limit(section: dict[str, Any]) -> dict[str, Any]:
    return section | {"connection_string": f"{section['connection_string']},socket_timeout=0.5"}


@pytest.fixture
def postgres_couriers(make_project: Any, postgres_server: Any, tmp_path: Path) -> Any:
    return make_project(tmp_path / "on_postgres", yaml_of(new_database(postgres_server)))


def new_database(server: Any, zone: str = "UTC") -> dict[str, Any]:
    name = server.new_database().partition("?")[0].rpartition("/")[2]
    server.execute(f"alter database {name} set timezone = '{zone}'")
    return dict(server.online_store | {"database": name})


@pytest.fixture(params=["sqlite", "redis", "redis_cluster", "redis_sentinel", "postgres"])
def project(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("couriers" if request.param == "sqlite" else f"{request.param}_couriers")


def land(repo: Path, name: str, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist([row | {"created": row["seen_at"]} for row in rows])
    stamps = {"seen_at", "created", "hired"}
    fields = [f.with_type(pa.timestamp("us", tz="UTC")) if f.name in stamps else f for f in table.schema]
    pq.write_table(table.cast(pa.schema(fields)), repo / "data" / f"{name}.parquet")


def test_what_is_materialized_is_read(project: Any) -> None:
    names = ["north", "west", "east"]
    weather = [
        {"depot_id": name, "temperature": 1.5 * i, "storm": bool(i % 2), "sky": "é" * i, "seen_at": HOUR}
        for i, name in enumerate(names)
    ]
    land(project.repo, "weather", weather)
    land(project.repo, "person", [{"courier_id": 7, "age": 40, "rating": 0.5, "hired": NOW, "seen_at": NOW}])
    land(project.repo, "pair", [{"depot_id": "north", "courier_id": 8, "trips": 3, "seen_at": HOUR}])
    land(project.repo, "city", [{"city_load": 0.1, "seen_at": HOUR}])
    land(project.repo, "load", [{"courier_id": 8, "kilos": 2.5, "seen_at": HOUR - timedelta(minutes=5)}] * 3)
    store = project.store()
    materialize(store, HOUR - timedelta(days=1), NOW)
    plan = compile_plan(store, "delay_v1")
    request = {"ready_at": NOW, "weight": 2.0, "pieces": 1, "fragile": True, "label": "x"}
    keys = [("north", 7), ("west", 8), ("north", 8), ("nowhere", 999)]
    rows = [{"depot_id": depot, "courier_id": courier, **request} for depot, courier in keys]
    found = plan.look_up({name: [row[name] for row in rows] for name in rows[0]}, [NOW] * len(rows))
    theirs = store.get_online_features(features=store.get_feature_service("delay_v1"), entity_rows=rows).to_dict()
    for name in ("temperature", "storm", "sky", "age", "rating", "trips", "city_load", "heat", "label_or_sky"):
        assert found.values[name] == theirs[name], name
    assert found.values["load_count_1h"] == [2, 3, 3, 0]
    assert found.statuses["load"] == [*["present"] * 3, "not_found"]
    assert [times["weather"] for times in found.view_times] == [HOUR.timestamp() * 1e6] * 3 + [None]


def test_what_another_process_materializes_is_seen_at_once(couriers: Any) -> None:
    plan = compile_plan(couriers.store(), "small_v1")
    assert plan.look_up(ASKED, [NOW]).values == ANSWER
    land(couriers.repo, "person", [{"courier_id": 7, "age": 90, "rating": 0.5, "hired": NOW, "seen_at": HOUR}])
    program = (
        "import sys; from datetime import datetime, timedelta; from pathlib import Path; "
        "from asof.materialize import materialize; from asof.repository import open_store; "
        "now = datetime.fromisoformat(sys.argv[2]); "
        "materialize(open_store(Path(sys.argv[1])), now - timedelta(days=1), now, views=['person'])"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(couriers.repo), NOW.isoformat()]
    subprocess.run(command, check=True, timeout=200)
    assert plan.look_up(ASKED, [NOW]).values == ANSWER | {"age": [90]}


def test_every_thread_reads_whole_rows_while_they_are_written(project: Any) -> None:
    plan = compile_plan(project.store(), "delay_v1")
    columns = {"depot_id": ["north"] * 3, "courier_id": [1, 2, 3]}
    columns |= {
        "ready_at": [NOW] * 3,
        "weight": [1.0] * 3,
        "pieces": [1] * 3,
        "fragile": [True] * 3,
        "label": ["x"] * 3,
    }
    done = threading.Event()
    seen: set[int] = set()

    def read(_: int) -> None:
        while not done.is_set():
            values = plan.look_up(columns, [NOW] * 3).values
            for before, age, rating in zip((21, 22, 23), values["age"], values["rating"], strict=True):
                assert age in (before, rating)
            seen.update(values["age"])

    with ThreadPoolExecutor(6) as pool:
        running = [pool.submit(read, i) for i in range(6)]
        for n in range(40, 60):
            stamp = NOW - timedelta(seconds=100 - n)
            row = {"age": n, "rating": float(n), "hired": NOW}
            project.write("person", [({"courier_id": key}, row, stamp) for key in (1, 2, 3)])
        done.set()
        for each in running:
            each.result()
    assert len(seen) > 3
    assert plan.look_up(columns, [NOW] * 3).values["age"] == [59] * 3


def test_a_request_is_one_round_trip(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = compile_plan(project.store(), "delay_v1")
    reader: Any = plan._reader
    trips: list[Any] = []
    if not plan.waits:
        reader._memory().connection.set_trace_callback(lambda sql: trips.append(sql) if "select" in sql else None)
    else:
        ask = reader._ask
        monkeypatch.setattr(reader, "_ask", lambda *given: trips.append(given) or ask(*given))
    assert len(plan.views) == 5
    columns = {"depot_id": ["north", "south"], "courier_id": [7, 8], "ready_at": [NOW] * 2, "weight": [1.0] * 2}
    plan.look_up(columns | {"pieces": [1] * 2, "fragile": [True] * 2, "label": ["x"] * 2}, [NOW] * 2)
    assert len(trips) == 1, trips


def test_a_redis_that_is_stopped_is_named_and_found_again(
    redis_couriers: Any, redis_server: Any, fill_store: Any
) -> None:
    plan = compile_plan(redis_couriers.store(), "small_v1")
    assert plan.look_up(ASKED, [NOW]).values == ANSWER
    redis_server.stop()
    try:
        with pytest.raises(StoreUnavailable, match=f"Redis online store at 127.0.0.1:{redis_server.port}") as down:
            plan.look_up(ASKED, [NOW])
        assert "online_store.connection_string" in down.value.hint
    finally:
        redis_server.start()
    assert plan.look_up(ASKED, [NOW]).statuses["person"] == ["not_found"]
    fill_store(redis_couriers.store())
    assert plan.look_up(ASKED, [NOW]).values == ANSWER


def test_a_redis_that_hangs_is_not_waited_for(redis_couriers: Any, redis_server: Any) -> None:
    plan = compile_plan(redis_couriers.store(), "small_v1")
    plan.look_up(ASKED, [NOW])
    redis_server._process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(StoreUnavailable, match="Timeout"):
            plan.look_up(ASKED, [NOW])
    finally:
        redis_server._process.send_signal(signal.SIGCONT)
    assert plan.look_up(ASKED, [NOW]).values == ANSWER


def test_a_cluster_is_read_and_written_while_its_keys_move(redis_cluster_couriers: Any, redis_cluster: Any) -> None:
    store, plan = redis_cluster_couriers.store(), compile_plan(redis_cluster_couriers.store(), "small_v1")
    assert plan.look_up(ASKED, [NOW]).values == ANSWER
    client = store._get_provider().online_store._get_client(store.config.online_store)
    key = serialize_entity_key(EntityKey(join_keys=["courier_id"], entity_values=[Value(int64_val=7)]), 3)
    slot = client.keyslot(key + b"couriers")
    old = next(each for each in redis_cluster.servers if each.port == client.get_node_from_key(key + b"couriers").port)
    new = next(each for each in redis_cluster.servers if each is not old)

    def ages(value: int) -> list[Any]:
        person = {"courier_id": 7, "age": value, "rating": 0.5, "hired": NOW, "seen_at": HOUR}
        land(redis_cluster_couriers.repo, "person", [person])
        materialize(store, HOUR - timedelta(days=1), NOW, views=["person"])
        theirs = store.get_online_features(["person:age"], entity_rows=[{"courier_id": 7}]).to_dict()["age"]
        return [*plan.look_up(ASKED, [NOW]).values["age"], *theirs]

    names = {server: server.say("CLUSTER MYID").split()[1] for server in (old, new)}
    assert new.say(f"CLUSTER SETSLOT {slot} IMPORTING {names[old]}").startswith("+OK")
    assert old.say(f"CLUSTER SETSLOT {slot} MIGRATING {names[new]}").startswith("+OK")
    assert ages(70) == [70, 70]  # both have the slot, the old one the key
    direct = redis.Redis(port=old.port, password=redis_cluster.password)
    direct.execute_command(
        *("MIGRATE", new.host, new.port, "", 0, 5000, "AUTH", redis_cluster.password),
        *("KEYS", *direct.execute_command("CLUSTER GETKEYSINSLOT", slot, 100)),
    )
    direct.close()
    assert ages(71) == [71, 71]  # the new one has the key
    for server in redis_cluster.servers:
        assert server.say(f"CLUSTER SETSLOT {slot} NODE {names[new]}").startswith("+OK")
    assert ages(72) == [72, 72]
    assert plan.look_up(ASKED, [NOW]).values["temperature"] == ANSWER["temperature"]


def test_a_node_that_is_stopped_is_named_and_found_again(
    redis_cluster_couriers: Any, redis_cluster: Any, fill_store: Any
) -> None:
    plan = compile_plan(redis_cluster_couriers.store(), "small_v1")
    rows = {"depot_id": ["north"] * 29, "courier_id": list(range(1, 30))}
    assert plan.look_up(rows, [NOW] * 29).values["age"] == list(range(21, 50))
    node = redis_cluster.servers[2]
    node._process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(StoreUnavailable, match="Timeout"):
            plan.look_up(rows, [NOW] * 29)
    finally:
        node._process.send_signal(signal.SIGCONT)
    assert plan.look_up(rows, [NOW] * 29).values["age"] == list(range(21, 50))
    node.stop()
    try:
        nodes = ", ".join(each.connection_string for each in redis_cluster.servers[:2])
        with pytest.raises(StoreUnavailable, match=f"Redis online store at the cluster of {nodes}.*refused") as down:
            plan.look_up(rows, [NOW] * 29)
        assert "online_store.connection_string" in down.value.hint
    finally:
        node.start()
        redis_cluster.agree()
    fill_store(redis_cluster_couriers.store())
    assert plan.look_up(rows, [NOW] * 29).values["age"] == list(range(21, 50))


def test_after_a_failover_the_new_master_is_read(
    redis_sentinel: Any, redis_sentinel_couriers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = redis_sentinel.online_store["connection_string"].split(",")
    file = redis_sentinel_couriers.repo / "feature_store.yaml"
    away_first = ",".join([settings[1], settings[0], *settings[2:]])
    file.write_text(file.read_text().replace(",".join(settings), away_first))
    monkeypatch.setattr("redis.retry.sleep", lambda seconds: pytest.fail("waited for a Sentinel that is away"))
    plan = compile_plan(redis_sentinel_couriers.store(), "small_v1")
    assert plan.look_up(ASKED, [NOW]).values == ANSWER
    redis_sentinel.fail_over()
    assert plan.look_up(ASKED, [NOW]).values == ANSWER
    redis_sentinel.master.stop()
    where = f"the master 'features' of the Sentinels {settings[1]}, {settings[0]}"
    with pytest.raises(StoreUnavailable, match=f"Redis online store at {where} does not answer"):
        plan.look_up(ASKED, [NOW])
    redis_sentinel.sentinel.stop()
    with pytest.raises(StoreUnavailable, match="no Sentinel in reach knows a master that is up") as down:
        plan.look_up(ASKED, [NOW])
    assert "online_store.sentinel_master" in down.value.hint


def test_a_password_and_tls_are_taken_from_the_connection_string(
    make_project: Any, program: Any, tmp_path: Path
) -> None:
    cert, key = self_signed(tmp_path, x509.IPAddress(IPv4Address("127.0.0.1")))
    port = free_port()
    options = ("--tls-port", str(port), "--tls-cert-file", str(cert), "--tls-key-file", str(key))
    server = RedisServer(program("redis-server"), tmp_path, *options, "--tls-auth-clients", "no", password="p=ss")
    server.start()
    try:
        settings = f"127.0.0.1:{port},password=p=ss,ssl=true,ssl_ca_certs={cert}"
        couriers = make_project(tmp_path / "on_tls", yaml_of({"type": "redis", "connection_string": settings}))
        assert compile_plan(couriers.store(), "small_v1").look_up(ASKED, [NOW]).values == ANSWER
        file = couriers.repo / "feature_store.yaml"
        for right, wrong, told in (("p=ss", "guessed", "password"), (f",ssl_ca_certs={cert}", "", "certificate")):
            before = file.read_text()
            file.write_text(before.replace(right, wrong))
            with pytest.raises(StoreUnavailable, match=f"at 127.0.0.1:{port} does not answer: .*{told}") as refused:
                compile_plan(couriers.store(), "small_v1").look_up(ASKED, [NOW])
            assert "guessed" not in str(refused.value)
            file.write_text(before)
    finally:
        server.stop()


def test_a_postgresql_that_is_stopped_is_named_and_found_again(
    make_project: Any, postgres_server: Any, tmp_path: Path
) -> None:
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        server = type(postgres_server)(folder)
        try:
            couriers = make_project(tmp_path / "project", yaml_of(server.online_store))
            plan = compile_plan(couriers.store(), "small_v1")
            assert plan.look_up(ASKED, [NOW]).values == ANSWER
            server.close()
            with pytest.raises(StoreUnavailable, match=f"PostgreSQL online store at {folder}:5432/postgres") as down:
                plan.look_up(ASKED, [NOW])
            assert "online_store in feature_store.yaml" in down.value.hint
            server = type(postgres_server)(folder)
            assert plan.look_up(ASKED, [NOW]).values == ANSWER
        finally:
            server.close()


def test_a_postgresql_that_hangs_is_not_waited_for(postgres_couriers: Any) -> None:
    plan = compile_plan(postgres_couriers.store(), "small_v1")
    plan._reader._timeout = 0.5  # type: ignore[attr-defined]
    plan.look_up(ASKED, [NOW])
    backend = plan._reader._idle[0]._connection.info.backend_pid  # type: ignore[attr-defined]
    os.kill(backend, signal.SIGSTOP)
    try:
        with pytest.raises(StoreUnavailable, match="no answer in time"):
            plan.look_up(ASKED, [NOW])
    finally:
        os.kill(backend, signal.SIGCONT)
    assert plan.look_up(ASKED, [NOW]).values == ANSWER


def test_a_table_made_anew_is_read_and_a_missing_one_named(postgres_couriers: Any, fill_store: Any) -> None:
    store = postgres_couriers.store()
    plan = compile_plan(store, "small_v1")
    plan.look_up(ASKED, [NOW])
    online, view = store._get_provider().online_store, store.get_feature_view("person")
    online.update(store.config, [view], [], [], [], False)
    with pytest.raises(StoreUnavailable, match="couriers_person") as missing:
        plan.look_up(ASKED, [NOW])
    assert "feast apply" in missing.value.hint
    online.update(store.config, [], [view], [], [], False)
    assert plan.look_up(ASKED, [NOW]).statuses["person"] == ["not_found"]
    fill_store(store)
    assert plan.look_up(ASKED, [NOW]).values == ANSWER


def test_event_times_do_not_depend_on_the_zone_of_a_postgresql_session(
    make_project: Any, postgres_server: Any, tmp_path: Path
) -> None:
    couriers = make_project(tmp_path / "project", yaml_of(new_database(postgres_server, "America/New_York")))
    found = compile_plan(couriers.store(), "small_v1").look_up(ASKED, [NOW])
    assert found.view_times[0]["weather"] == HOUR.timestamp() * 1e6
    assert found.values == ANSWER


def test_a_sqlite_store_that_is_not_there_is_named(couriers: Any) -> None:
    plan = compile_plan(couriers.store(), "small_v1")
    database = couriers.repo / "data" / "online.db"
    database.unlink()
    with pytest.raises(StoreUnavailable, match=str(database)) as missing:
        plan.look_up(ASKED, [NOW])
    assert "feast apply" in missing.value.hint
    database.write_bytes(b"")
    with pytest.raises(StoreUnavailable, match="no such table"):
        plan.look_up(ASKED, [NOW])


def test_a_project_on_redis_is_served_by_the_same_code(
    redis_couriers: Any, redis_server: Any, serve: Any, fill_store: Any
) -> None:
    row = {
        "parcel": None,
        "ready_at": "2024-03-05T10:00:00Z",
        "weight": 2.5,
        "pieces": 3,
        "fragile": False,
        "label": "x",
    }
    row |= {"depot_id": "north", "courier_id": 7}
    redis_couriers.deploy(1, (1, redis_couriers.bundle("one")))
    served = serve(project=redis_couriers)
    first = served.ask(row)
    assert first.status_code == 200
    assert served.ask(row | {"depot_id": "nowhere"}).status_code == 422  # a depot the store does not know
    redis_server.stop()
    try:
        down = served.ask(row)
        assert down.status_code == 503
        assert f"Redis online store at 127.0.0.1:{redis_server.port}" in down.text
    finally:
        redis_server.start()
    fill_store(redis_couriers.store())
    again = served.ask(row)
    assert again.json()["predictions"][0]["score"] == first.json()["predictions"][0]["score"]
    assert served.logged("champion")[0]["view_times"] == served.logged("champion")[1]["view_times"]
    answered, logged, lost = served.balance().answered, served.balance().logged, served.balance().lost
    assert (answered, logged, lost) == (2, 2, 0)


texts = st.text(max_size=300)
SCALARS = {
    ValueType.INT32: st.integers(-(2**31), 2**31 - 1),
    ValueType.INT64: st.integers(-(2**63), 2**63 - 1),
    ValueType.FLOAT: st.floats(width=32),
    ValueType.DOUBLE: st.floats(),
    ValueType.BOOL: st.booleans(),
    ValueType.STRING: texts,
    ValueType.BYTES: st.binary(max_size=300),
    ValueType.UNIX_TIMESTAMP: st.integers(-(10**10), 10**11).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
    ValueType.INT64_LIST: st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1),
}


def parsed(stored: bytes) -> Any:
    value = Value()
    value.ParseFromString(stored)
    return feast_value_type_to_python_type(value)


@given(st.sampled_from(list(SCALARS)).flatmap(lambda kind: st.tuples(st.just(kind), st.none() | SCALARS[kind])))
def test_a_value_is_decoded_as_feast_decodes_it(case: tuple[ValueType, Any]) -> None:
    kind, value = case
    stored = python_values_to_proto_values([value], kind)[0].SerializeToString()
    assert repr(decoder(parsed)(stored)) == repr(parsed(stored))


KINDS: dict[Any, tuple[ValueType, st.SearchStrategy[Any]]] = {
    "int32": (ValueType.INT32, SCALARS[ValueType.INT32]),
    "int64": (ValueType.INT64, SCALARS[ValueType.INT64]),
    "text": (ValueType.STRING, texts),
    "timestamp": (ValueType.UNIX_TIMESTAMP, SCALARS[ValueType.UNIX_TIMESTAMP]),
}
parts = st.sampled_from(list(KINDS)).flatmap(lambda kind: st.tuples(st.just(kind), KINDS[kind][1]))


@given(st.dictionaries(texts, parts, max_size=3))
def test_a_key_is_encoded_as_feast_encodes_it(key: dict[str, tuple[Any, Any]]) -> None:
    names = sorted(key)
    ours = key_encoder(names, [key[name][0] for name in names])(tuple(key[name][1] for name in names))
    values = [python_values_to_proto_values([key[name][1]], KINDS[key[name][0]][0])[0] for name in names]
    if not key:
        names, values = ["__dummy_id"], [Value(string_val="")]
    assert ours == serialize_entity_key(EntityKey(join_keys=names, entity_values=values), 3)


def test_what_redis_says_is_worked_out_once_and_a_list_for_every_caller(monkeypatch) -> None:
    from serving import online_redis

    parsed: list[bytes] = []

    def parse(stored: bytes) -> Any:
        parsed.append(stored)
        return [1.5] if stored == b"list" else stored.decode()

    monkeypatch.setattr(online_redis, "_REMEMBERED", 2)
    known = online_redis._Known(parse)
    assert [known[b"a"], known[b"a"], known[b"list"], known[b"list"]] == ["a", "a", [1.5], [1.5]]
    assert parsed == [b"a", b"list", b"list"]
    assert known[b"list"] is not known[b"list"]
    for stored in (b"b", b"c", b"d"):
        assert known[stored] == stored.decode()
    assert len(known) <= 2


def test_json_is_read_as_the_text_that_its_source_holds() -> None:
    text = '{"zones": ["north"],"km":141}'
    [value] = python_values_to_proto_values([text], ValueType.JSON)
    assert _parsed(value.SerializeToString()) == text
