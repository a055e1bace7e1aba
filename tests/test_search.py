"""Searching a gallery: the indices, the cache of features, what paths tell, and the tool."""

import csv
import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.path_labels import path_label, same_identity
from processor.inference import Embedder
from tools import embed
from tools import search as tool
from utils import gallery_index
from utils.command import run_script
from utils.errors import DataError, UserError
from utils.faiss_index import FaissIndex
from utils.feature_cache import FeatureCache, contents_of
from utils.gallery_index import ExactIndex
from utils.qdrant_index import QdrantIndex


def unit(*shape, seed=0):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def names_of(count, first=0):
    return [f"g/{number}.jpg" for number in range(first, first + count)]


def found_by(index, queries, k):
    """Scores [Q, K] and names."""
    lists = index.search(queries, k)
    assert all([hit.rank for hit in found] == list(range(1, len(found) + 1)) for found in lists)
    scores = torch.tensor([[hit.score for hit in found] for found in lists])
    return scores, [[hit.name for hit in found] for found in lists]


def brute(queries, gallery, names, k):
    scores = queries.double().numpy() @ gallery.double().numpy().T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), [[names[place] for place in row] for row in order]


INDICES = {
    "exact": lambda path, digest="d": ExactIndex(),
    "faiss": lambda path, digest="d": FaissIndex(path / "f", digest, 16),
    "qdrant": lambda path, digest="d": QdrantIndex(str(path / "q"), digest, 16, create=True),
}


@pytest.mark.parametrize("kind", INDICES)
def test_small_galleries_are_searched_exactly(kind, tmp_path):
    index = INDICES[kind](tmp_path)
    count = 60 if kind == "qdrant" else 300  # whose folder takes a point at a time
    gallery, queries, names = unit(count, 16), unit(5, 16, seed=1), names_of(count)
    assert index.count() == 0 and index.search(queries, 3) == [[]] * 5
    index.add(names[:30], unit(30, 16, seed=2))  # replaced
    index.add(names, gallery)
    for k in (1, 10, 500):
        scores, found = found_by(index, queries, k)
        wanted, order = brute(queries, gallery, names, k)
        if kind == "faiss" and k == 10:  # it compares the nearest clusters
            assert sum(len({*a} & {*b}) for a, b in zip(found, order, strict=True)) >= 45
        else:
            assert found == order
            torch.testing.assert_close(scores, torch.from_numpy(wanted).float(), atol=1e-6, rtol=0)
    assert index.count() == count
    index.close()


def test_equal_scores_keep_the_gallerys_order_and_queries_do_not_matter(monkeypatch):
    gallery = unit(40, 48)[torch.randint(40, (1000,), generator=torch.Generator().manual_seed(3))]
    queries, names = torch.cat([unit(6, 48, seed=4), gallery[:2]]), names_of(1000)
    index = ExactIndex()
    index.add(names, gallery)
    _, order = brute(queries, gallery, names, 60)
    scores, found = found_by(index, queries, 60)
    assert found == order
    monkeypatch.setattr(gallery_index, "PAIRS_AT_ONCE", 1)
    monkeypatch.setattr(gallery_index, "ROWS_AT_ONCE", 7)
    alone, again = found_by(index, queries, 60)
    assert again == found and torch.equal(alone, scores)


@pytest.mark.parametrize("kind", ["faiss", "qdrant"])
def test_a_kept_index_is_opened_added_to_and_refused_to_others(kind, tmp_path):
    gallery, names = unit(400, 16), names_of(400)
    index = INDICES[kind](tmp_path)
    index.add(names[:50], gallery[:50])
    index.save()
    index.close()
    index = INDICES[kind](tmp_path)
    assert index.count() == 50 and found_by(index, gallery[:50], 1)[1] == [[name] for name in names[:50]]
    for start in range(50, 400, 70):
        index.add(names[start : start + 70], gallery[start : start + 70])
    index.save()
    index.close()
    index = INDICES[kind](tmp_path)
    scores, found = found_by(index, gallery, 1)
    assert index.count() == 400 and found == [[name] for name in names]
    torch.testing.assert_close(scores, torch.ones(400, 1))
    index.close()
    with pytest.raises(DataError, match=r"\bd\b.*other"):
        if kind == "faiss":
            INDICES[kind](tmp_path, "other")
        else:
            QdrantIndex(str(tmp_path / "q"), "other", 16, create=False)


def test_a_damaged_index_is_refused_and_an_interrupted_save_changes_nothing(tmp_path, monkeypatch):
    index = INDICES["faiss"](tmp_path)
    index.add(names_of(50), unit(50, 16))
    index.save()
    index.add(names_of(50, 50), unit(50, 16, seed=1))
    with monkeypatch.context() as patch:
        patch.setattr("utils.faiss_index.replace_text", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(UserError, match="full"):
            index.save()
    assert INDICES["faiss"](tmp_path).count() == 50
    index.save()
    assert INDICES["faiss"](tmp_path).count() == 100 and len(list((tmp_path / "f").iterdir())) == 2
    (vectors,) = (tmp_path / "f").glob("*.faiss")
    vectors.write_bytes(vectors.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="damaged"):
        INDICES["faiss"](tmp_path)


@pytest.mark.parametrize(("kind", "module"), [("faiss", "faiss"), ("qdrant", "qdrant_client")])
def test_a_missing_library_is_named(kind, module, tmp_path, monkeypatch):
    monkeypatch.setitem(importlib.sys.modules, module, None)
    with pytest.raises(UserError, match=rf"{module}.*requirements-extra\.txt"):
        INDICES[kind](tmp_path)


@pytest.mark.slow
def test_of_a_hundred_thousand_features_almost_all_are_found(tmp_path):
    generator = torch.Generator().manual_seed(5)
    people = torch.randn(10_000, 512, generator=generator)  # ten images each; queries are of the same people

    def images(pids):
        return torch.nn.functional.normalize(people[pids] + torch.randn(len(pids), 512, generator=generator), dim=1)

    gallery, names = images(torch.arange(10_000).repeat(10)), names_of(100_000)
    queries, found = images(torch.randint(10_000, (100,))), []
    for index in (ExactIndex(), FaissIndex(tmp_path / "f", "d", 512)):
        index.add(names, gallery)
        found.append(found_by(index, queries, 10)[1])
    assert found[0][:10] == brute(queries[:10], gallery, names, 10)[1]
    assert sum(len({*a} & {*b}) for a, b in zip(*found, strict=True)) > 900


def test_features_are_remembered_by_network_and_content(tmp_path):
    contents, features = [bytes([number]) * 32 for number in range(4)], unit(4, 8)
    cache = FeatureCache(tmp_path / "c", "d")
    cache.keep(dict(zip(contents[:3], features, strict=False)))
    cache.close()
    found = FeatureCache(tmp_path / "c", "d").find(contents)
    assert found.keys() == set(contents[:3]) and torch.equal(found[contents[1]], features[1])
    assert FeatureCache(tmp_path / "c", "other").find(contents) == {}
    (tmp_path / "c").write_bytes(b"no database" * 100)
    known, unreadable = contents_of([str(tmp_path / "c"), str(tmp_path / "none")])
    assert len(known) == 32 and unreadable is None
    for path in (tmp_path / "c", tmp_path / "none" / "c"):
        with pytest.raises(UserError, match=rf"{path}: cannot be used"):
            FeatureCache(path, "d")


@pytest.mark.parametrize("kind", ["faiss", "qdrant"])
def test_a_folder_of_pictures_is_no_index(kind, tmp_path):
    folder = tmp_path / kind[0]
    folder.mkdir()
    (folder / "1.jpg").write_bytes(b"a picture")
    with pytest.raises(DataError, match="name another"):
        INDICES[kind](tmp_path)
    assert [path.name for path in folder.iterdir()] == ["1.jpg"]


def test_a_server_that_does_not_answer_is_said(tmp_path, capsys):
    assert run_script(lambda: QdrantIndex("http://localhost:1", "d", 16, create=True)) == 2
    assert "localhost:1: cannot be opened" in capsys.readouterr().err
    index = INDICES["qdrant"](tmp_path)
    index.client.close()
    index.client.count = index.client.upsert = lambda *_, **__: (_ for _ in ()).throw(ConnectionError("reset\nby peer"))
    for fail in (index.count, lambda: index.add(names_of(2), unit(2, 16))):
        assert run_script(fail) == 2 and "reset by peer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "where", "label"),
    [
        ("g/0002_c1s1_000451.jpg", "names", ("2", "1")),
        ("g/-1_c3s1.jpg", "names", ("", "3")),
        ("g/c3_0001.jpg", "names", ("", "3")),
        ("g/holiday.jpg", "names", ("", "")),
        ("g/anna/c2_1.jpg", "folders", ("anna", "2")),
        ("g/anna/0002_c1.jpg", "none", ("", "1")),
    ],
)
def test_what_a_path_tells(path, where, label):
    assert path_label(path, where) == label
    assert same_identity(path_label(path, where), path_label(path, where)) is (True if label[0] else None)


def test_folders_are_identities_only_where_they_look_like_it():
    assert tool.per_identity(["g/anna/1.jpg", "g/ben/1.jpg"])
    for names in (
        ["g/1.jpg", "g/2.jpg"],
        ["g/anna/1.jpg", "g/2.jpg"],
        ["g/query/1.jpg", "g/gallery/2.jpg"],
        ["g/cam1/1.jpg", "g/cam2/1.jpg"],
        ["g/a/0001_c1.jpg", "g/b/0001_c2.jpg"],
    ):
        assert not tool.per_identity(names)


@pytest.fixture
def gallery(trained, tmp_path):
    """A folder of a copy of each gallery image, which is named as Market-1501's."""
    for number, sample in enumerate(trained[2].trials[0].gallery):
        target = tmp_path / "gallery" / f"{sample.pid:04d}_c{sample.camid + 1}_{number}.jpg"
        target.parent.mkdir(exist_ok=True)
        shutil.copy(sample.path, target)
    return tmp_path / "gallery"


@pytest.fixture
def run(trained, tmp_path, capsys):
    """The tool's exit code and what it wrote; the query is the benchmark's first, and has its name."""
    sample = trained[2].trials[0].query[0]
    query = tmp_path / f"{sample.pid:04d}_c{sample.camid + 1}_q.jpg"
    shutil.copy(sample.path, query)

    def run(*words, queries=(query,)):
        output = tmp_path / "out.json"
        given = ["--weight", trained[0], "--device", "cpu", "--output", output, *queries, *words]
        code = tool.main([str(word) for word in given])
        run.said = capsys.readouterr()
        return code, json.loads(output.read_text())

    run.query = query
    return run


def test_the_ranked_list_with_cameras_and_matches(run, gallery, trained, tmp_path):
    code, found = run("--gallery", gallery, "--top", 3, "--picture", tmp_path / "r.png", "--csv", tmp_path / "r.csv")
    (answer,) = found["queries"]
    names = sorted(str(path) for path in gallery.iterdir())
    embedder = Embedder.from_checkpoint(trained[0], device="cpu")
    scores, (order,) = brute(embedder([run.query]), embedder(names), names, 3)
    assert code == 0 and [hit["name"] for hit in answer["found"]] == order
    assert [hit["score"] for hit in answer["found"]] == pytest.approx(scores[0].tolist(), abs=1e-5)
    assert [hit["rank"] for hit in answer["found"]] == [1, 2, 3] and found["digest"] == embedder.digest
    for hit in answer["found"]:
        pid, camera, _ = Path(hit["name"]).name.split("_")
        assert hit["camera"] == camera[1:] and hit["correct"] == (pid == run.query.name.split("_")[0])
    assert order[0] in run.said.out and (tmp_path / "r.png").is_file()
    header, *rows = csv.reader((tmp_path / "r.csv").open(newline=""))
    assert header[:2] == ["query", "rank"] and [row[2] for row in rows] == order
    assert run("--gallery", gallery, "--json")[0] == 0 and json.loads(run.said.out)["queries"]


def test_a_changed_file_is_embedded_again_and_a_renamed_one_is_not(run, gallery):
    count = len(list(gallery.iterdir()))
    _, found = run("--gallery", gallery)
    assert (found["embedded"], found["from_cache"]) == (count + 1, 0)
    first, second, *_ = sorted(gallery.iterdir())
    first.rename(gallery / "renamed.jpg")
    Image.new("RGB", (40, 80), "red").save(second)
    _, found = run("--gallery", gallery)
    assert (found["embedded"], found["from_cache"]) == (1, count)
    _, found = run("--gallery", gallery, "TEST.FLIP", "True")
    assert found["from_cache"] == 0
    _, found = run("--gallery", gallery, "--no-cache")
    assert found["from_cache"] == 0


def test_a_query_in_the_gallery_is_said_and_left_out(run, gallery):
    copies = [gallery / f"copy{number}.jpg" for number in range(5)]
    for copy in copies:
        shutil.copy(run.query, copy)
    _, found = run("--gallery", gallery, "--top", 3)
    (answer,) = found["queries"]
    assert answer["left_out"] == [str(copy) for copy in copies] and len(answer["found"]) == 3
    assert not any("copy" in hit["name"] for hit in answer["found"]) and str(copies[0]) in run.said.out
    _, kept = run("--gallery", gallery, "--top", 7, "--keep-own")
    hits = kept["queries"][0]["found"]
    assert [hit["name"] for hit in hits[:5]] == [str(copy) for copy in copies]
    assert [hit["name"] for hit in hits[5:]] == [hit["name"] for hit in answer["found"][:2]]
    assert hits[0]["correct"] is None  # its name does not tell


def test_a_gallery_in_a_folder_per_identity(run, gallery):
    root = gallery.with_name("own")
    for path in list(gallery.iterdir()):
        target = root / f"anna{int(path.name.split('_')[0])}" / f"{path.name.split('_')[2]}"
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    _, found = run("--gallery", root)
    assert {hit["correct"] for hit in found["queries"][0]["found"]} == {None}
    folder = sorted(root.iterdir())[0].name
    query = run.query.with_name("asked") / folder / "q.jpg"
    query.parent.mkdir(parents=True)
    shutil.copy(run.query, query)
    _, found = run("--gallery", root, queries=[query])
    for hit in found["queries"][0]["found"]:
        assert hit["correct"] == (Path(hit["name"]).parent.name == folder)


def test_a_gallery_of_features_needs_no_pictures_but_this_network(run, gallery, trained, tmp_path):
    file = tmp_path / "features.npz"
    embed.main(["--weight", str(trained[0]), "--device", "cpu", "--output", str(file), str(gallery)])
    _, direct = run("--gallery", gallery)
    shutil.rmtree(gallery)
    code, found = run("--gallery", file, "--picture", tmp_path / "r.svg")
    assert code == 0 and found["queries"] == direct["queries"] and "grey" in run.said.err
    with pytest.raises(DataError, match=direct["digest"]):
        run("--gallery", file, "TEST.FLIP", "True")


def test_unreadable_images_are_named(run, gallery):
    (gallery / "broken.jpg").write_bytes(b"no image")
    bad = run.query.with_name("bad.jpg")
    bad.write_bytes(b"no image, either")
    code, found = run("--gallery", gallery, queries=[bad, run.query])
    assert code == 1 and "broken.jpg" in run.said.err and "bad.jpg" in run.said.err
    assert [answer["query"] for answer in found["queries"]] == [str(run.query)]
    assert run("--gallery", gallery, "--skip-unreadable", queries=[bad, run.query])[0] == 0
    with pytest.raises(UserError, match="none of the 1 images"):
        run("--gallery", gallery, queries=[bad])


@pytest.mark.parametrize("kind", ["faiss", "qdrant"])
def test_a_kept_gallery_is_searched_without_its_folder(kind, run, gallery, tmp_path):
    words = ["--index", kind, "--index_path", tmp_path / "kept", "--top", 5]
    count = len(list(gallery.iterdir()))
    _, exact = run("--gallery", gallery, "--top", 5)
    _, filled = run("--gallery", gallery, *words)
    assert filled["gallery"] == count and filled["embedded"] == 0
    _, opened = run(*words)
    for found in (filled, opened):
        (hits,), (known,) = ([one["found"] for one in answers["queries"]] for answers in (found, exact))
        assert [hit["name"] for hit in hits] == [hit["name"] for hit in known]
        assert [hit["score"] for hit in hits] == pytest.approx([hit["score"] for hit in known], abs=1e-6)
    more = tmp_path / "more"
    more.mkdir()
    Image.new("RGB", (40, 80), "red").save(more / "red.jpg")
    assert run("--gallery", more, *words)[1]["gallery"] == count + 1
    with pytest.raises(DataError, match=exact["digest"]):
        run(*words, "TEST.FLIP", "True")


def test_wrong_words_are_refused(run, gallery, tmp_path):
    (tmp_path / "empty").mkdir()
    for words, message in (
        ([], "--gallery"),
        (["--gallery", tmp_path / "empty"], "empty"),
        (["--gallery", tmp_path / "none.npz"], "none.npz"),
        (["--gallery", gallery, "--index", "faiss"], "--index_path"),
        (["--gallery", gallery, "--index_path", "x"], "--index_path"),
        (["--index", "faiss", "--index_path", tmp_path / "none"], "none"),
        (["--index", "qdrant", "--index_path", tmp_path / "none"], "none"),
        (["--gallery", gallery, "--picture", "r.gif"], "r.gif"),
        (["--gallery", next(gallery.iterdir())], "in quotes"),
        (["--gallery", gallery, "--csv", tmp_path / "no/r.csv"], "no/r.csv"),
    ):
        with pytest.raises(UserError, match=message):
            run(*words)
    with pytest.raises(UserError, match="QUERY"):
        run("--gallery", gallery, queries=[])
