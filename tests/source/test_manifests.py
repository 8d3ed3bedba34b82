"""Reading manifests: every form that kubectl prints and people write, and one bad object harms itself only."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
import yaml

from netagent.errors import SourceError
from netagent.source import file_content, manifests, tree
from netagent.source.kinds import Kind, ObjectKey, object_key
from tests import builders

WEB: ObjectKey = (Kind.SERVICE, ("default", "web"))
API: ObjectKey = (Kind.SERVICE, ("default", "api"))
SLICE: ObjectKey = (Kind.ENDPOINT_SLICE, ("default", "web-1"))

web, api = builders.service_manifest("web"), builders.service_manifest("api", cluster_ip="10.96.0.2")
bad_web = builders.service_manifest("web", ports=[{"port": 0}])
web_slice = builders.slice_manifest("web", "10.180.0.1")
config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "items": {"not": "a list"}}


def read_text(text: str | bytes) -> manifests.Reading:
    data = text.encode() if isinstance(text, str) else text
    return manifests.read("-", stdin=io.BytesIO(data))


def keys(reading: manifests.Reading) -> list[ObjectKey]:
    return [object_key(item) for item in reading.objects]


def as_yaml(*items: builders.Manifest) -> str:
    return "---\n".join(yaml.safe_dump(item) for item in items)


def as_list(kind: str, version: str, *items: builders.Manifest) -> builders.Manifest:
    stripped = [
        {field: value for field, value in item.items() if field not in ("kind", "apiVersion")} for item in items
    ]
    return {"kind": kind, "apiVersion": version, "metadata": {"resourceVersion": "7"}, "items": stripped}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(builders.list_manifest(web, web_slice, config_map)),
        json.dumps(builders.list_manifest(builders.list_manifest(web), builders.list_manifest(web_slice), config_map)),
        json.dumps(web) + "\n" + json.dumps(web_slice, indent=2) + json.dumps(config_map),
        json.dumps(web) + "\n---\n" + json.dumps(web_slice) + "\n---\n" + as_yaml(config_map),
        as_yaml(builders.list_manifest(web, web_slice, config_map)),
        as_yaml(web, web_slice, config_map),
        "\ufeff# comment\n---\n" + as_yaml(web, web_slice, config_map) + "---\n",
        as_yaml(web, web_slice, config_map).replace("\n", "\r\n"),
        as_yaml(as_list("ServiceList", "v1", web), as_list("EndpointSliceList", "discovery.k8s.io/v1", web_slice))
        + "---\n"
        + as_yaml(config_map),
        json.dumps(
            builders.list_manifest(
                as_list("ServiceList", "v1", web),
                as_list("EndpointSliceList", "discovery.k8s.io/v1", web_slice),
                as_list("ConfigMapList", "v1", config_map),
            )
        ),
        yaml.safe_dump(web, default_flow_style=True) + "---\n" + as_yaml(web_slice, config_map),
    ],
)
def test_every_form_gives_the_same_objects(text: str) -> None:
    reading = read_text(text)
    assert reading.objects == (builders.service("web"), builders.endpoint_slice("web", "10.180.0.1"))
    assert reading.quarantined == reading.remarks == ()
    assert reading.ignored == 1
    assert reading.origins == {WEB: "<stdin>", SLICE: "<stdin>"}


@pytest.mark.parametrize(
    "text", ["", "\n", "---\n---\n", "# only a comment\n", '{"kind":"List","items":[]}', "kind: List"]
)
def test_nothing_is_fine(text: str) -> None:
    assert read_text(text) == manifests.Reading()


@pytest.mark.parametrize("form", [as_yaml, lambda *items: json.dumps(builders.list_manifest(*items))])
def test_a_bad_object_costs_itself_only_and_is_named(form: object) -> None:
    assert callable(form)
    reading = read_text(form(web_slice, bad_web, api))
    assert keys(reading) == [SLICE, API]
    (bad,) = reading.quarantined
    assert (bad.kind, bad.namespace, bad.name, bad.field) == ("Service", "default", "web", "spec.ports[0].port")
    assert bad.key == WEB
    assert str(bad).endswith("Service default/web: spec.ports[0].port: 0 is not a port (1 to 65535)")


def test_a_bad_list_item_is_named_by_its_place() -> None:
    reading = read_text(json.dumps(builders.list_manifest(web, builders.list_manifest({"kind": "Service"}))))
    assert [bad.item for bad in reading.quarantined] == ["items[1].items[0]"]
    assert str(reading.quarantined[0]) == ("<stdin>, document 1, items[1].items[0]: Service: metadata.name: is missing")


def test_a_syntax_error_costs_its_document_only_and_is_named_with_its_line() -> None:
    reading = read_text(as_yaml(web) + "---\na: [\n---\n" + as_yaml(api))
    assert keys(reading) == [WEB, API]
    (bad,) = reading.quarantined
    assert bad.document == 1
    assert bad.unparsed
    assert bad.line is not None
    assert str(bad).startswith(f"<stdin>:{bad.line}: is not valid YAML: ")


def test_broken_json_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"kind": "Service",\n "metadata": oops}\n')
    (bad,) = manifests.read(tmp_path).quarantined
    assert (bad.line, bad.unparsed) == (2, True)
    assert "is not valid JSON" in bad.reason


@pytest.mark.parametrize(
    "text", ["hello", "[1]", "3", '{"a": 1}', "kind: 5", "{}", "kind: List\nitems: 5", '{"kind":"List","items":5}']
)
def test_what_is_no_object_is_set_aside(text: str) -> None:
    reading = read_text(text)
    assert reading.objects == ()
    assert len(reading.quarantined) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xfe",
        b'{"kind":"List","items":' + b"[" * 100_000,
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\x00",
        b"{" + b"9" * 9999,
    ],
)
def test_garbage_is_set_aside_as_unparsed(data: bytes) -> None:
    reading = read_text(data)
    assert [bad.unparsed for bad in reading.quarantined] == [True]


def test_lists_in_lists_have_an_end() -> None:
    manifest = web
    for _ in range(20):
        manifest = builders.list_manifest(manifest)
    assert [bad.reason for bad in read_text(json.dumps(manifest)).quarantined] == ["has too many lists in lists"]


def test_objects_of_foreign_api_groups_are_ignored() -> None:
    reading = read_text(as_yaml(web | {"apiVersion": "serving.knative.dev/v1"}, {"kind": "AllowList", "items": 3}))
    assert (reading.objects, reading.quarantined, reading.ignored) == ((), (), 2)


def test_the_last_of_two_definitions_counts_and_is_remarked() -> None:
    other = builders.service_manifest("web", cluster_ip="10.96.0.9")
    reading = read_text(as_yaml(web, api, other))
    assert keys(reading) == [API, WEB]
    assert reading.objects[1] == builders.service("web", cluster_ips=["10.96.0.9"])
    assert str(reading.remarks[0]).startswith("Service default/web: is defined twice")


def test_a_directory_is_read_with_its_subdirectories_in_sorted_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.yml").write_text(as_yaml(web_slice))
    (tmp_path / "z.json").write_text(json.dumps(api))
    (tmp_path / "a.yaml").write_text(as_yaml(web))
    for ignored in (".hidden.yaml", "notes.txt", "web.yaml~"):
        (tmp_path / ignored).write_text("not: [yaml")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.yaml").write_text("not: [yaml")
    reading = manifests.read(tmp_path)
    assert keys(reading) == [WEB, SLICE, API]
    assert reading.quarantined == ()
    assert reading.origins[SLICE] == str(tmp_path / "sub" / "b.yml")


def test_a_config_map_volume_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "..2024_01").mkdir()
    (tmp_path / "..2024_01" / "web.yaml").write_text(as_yaml(web))
    (tmp_path / "..data").symlink_to("..2024_01")
    (tmp_path / "web.yaml").symlink_to("..data/web.yaml")
    reading = manifests.read(tmp_path)
    assert keys(reading) == [WEB]
    assert reading.remarks == ()


def test_symlinks_in_circles_do_not_hang(tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text(as_yaml(web))
    (tmp_path / "again").symlink_to(".")
    (tmp_path / "loop").symlink_to("loop")
    assert keys(manifests.read(tmp_path)) == [WEB]


def test_what_cannot_be_read_in_a_directory_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text(as_yaml(web))
    (tmp_path / "dangling.yaml").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo.yaml")
    reading = manifests.read(tmp_path)
    assert keys(reading) == [WEB]
    assert [(Path(bad.origin).name, bad.unparsed) for bad in reading.quarantined] == [
        ("dangling.yaml", True),
        ("fifo.yaml", True),
    ]


def test_a_missing_path_is_a_source_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot read manifests from .*/none: No such file or directory"):
        manifests.read(tmp_path / "none")
    with pytest.raises(SourceError):
        manifests.read("a\x00b")


# --- reading again ---------------------------------------------------------------------------------------------------


def test_an_object_that_turned_bad_stays_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(as_yaml(web, api, web_slice))
    first = manifests.read(tmp_path)
    file.write_text(as_yaml(bad_web, builders.service_manifest("api", cluster_ip="10.96.0.3")))
    second = manifests.read(tmp_path, previous=first)
    assert set(second.objects) == {builders.service("web"), builders.service("api", cluster_ips=["10.96.0.3"])}
    assert second.kept == {WEB}
    third = manifests.read(tmp_path, previous=second)
    assert set(third.objects) == set(second.objects)
    file.write_text(as_yaml(api))
    assert keys(manifests.read(tmp_path, previous=third)) == [API]


def test_a_file_that_turned_unreadable_keeps_all_its_objects(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(as_yaml(web, web_slice))
    (tmp_path / "b.yaml").write_text(as_yaml(api))
    first = manifests.read(tmp_path)
    (tmp_path / "a.yaml").write_text("half: [writ")
    (tmp_path / "b.yaml").unlink()
    second = manifests.read(tmp_path, previous=first)
    assert set(keys(second)) == {WEB, SLICE}
    assert second.kept == {WEB, SLICE}


def test_a_subdirectory_that_turned_unreadable_keeps_all_its_objects(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.yaml").write_text(as_yaml(web))
    first = manifests.read(tmp_path)
    unreadable = manifests.Quarantined(str(tmp_path / "sub"), reason="cannot be read", unparsed=True)
    reader = manifests._Reader({})
    reader.add(file_content.Content((), (unreadable,), 0))
    assert reader.reading(first).kept == {WEB}


def test_an_object_that_moved_to_another_file_is_not_kept_twice(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(as_yaml(web))
    first = manifests.read(tmp_path)
    (tmp_path / "a.yaml").write_text("half: [writ")
    (tmp_path / "b.yaml").write_text(as_yaml(builders.service_manifest("web", cluster_ip="10.96.0.9")))
    second = manifests.read(tmp_path, previous=first)
    assert second.objects == (builders.service("web", cluster_ips=["10.96.0.9"]),)
    assert second.kept == frozenset()


def test_a_file_that_is_as_it_was_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text(as_yaml(web, bad_web | {"metadata": {"name": "bad"}}, config_map))
    (tmp_path / "b.yaml").write_text(as_yaml(api))
    for name in ("a.yaml", "b.yaml"):
        _age(tmp_path / name)
    monkeypatch.setattr(tree, "is_settled", lambda stamp: True)
    first = manifests.read(tmp_path)
    read: list[str] = []
    taken_apart = manifests.read_content
    monkeypatch.setattr(manifests, "read_content", lambda name, data: read.append(name) or taken_apart(name, data))
    (tmp_path / "b.yaml").write_text(as_yaml(builders.service_manifest("api", cluster_ip="10.96.0.7")))
    second = manifests.read(tmp_path, previous=first)
    assert read == [str(tmp_path / "b.yaml")]
    fresh = manifests.read(tmp_path)
    assert (second.objects, second.quarantined, second.ignored) == (fresh.objects, fresh.quarantined, fresh.ignored)
    assert second.objects[0] is first.objects[0]
    (tmp_path / "a.yaml").unlink()
    assert set(keys(manifests.read(tmp_path, previous=second))) == {API}


def test_a_file_that_is_still_being_written_is_read_again(tmp_path: Path) -> None:
    """Within one tick of the file system's clock a second write changes no stamp."""
    path = tmp_path / "a.yaml"
    path.write_text(as_yaml(builders.service_manifest("web", cluster_ip="10.96.0.1")))
    first = manifests.read(tmp_path)
    status = path.stat()
    path.write_text(as_yaml(builders.service_manifest("web", cluster_ip="10.96.0.2")))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert manifests.read(tmp_path, previous=first).objects == (builders.service("web", cluster_ips=["10.96.0.2"]),)


def test_a_file_is_settled_when_it_was_left_alone_for_some_seconds(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("")
    stamp = tree.stamp_of(path.stat())
    assert not tree.is_settled(stamp)
    long_ago = stamp.written_ns - 10**10
    assert tree.is_settled(stamp._replace(written_ns=long_ago, changed_ns=long_ago))
    assert not tree.is_settled(stamp._replace(written_ns=long_ago))
    assert not tree.is_settled(stamp._replace(changed_ns=long_ago))


def _age(path: Path) -> None:
    """Make a file look old, as far as one can."""
    os.utime(path, (1, 1))
