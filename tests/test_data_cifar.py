import hashlib
import pickle
import socket
import tarfile
import urllib.error
import urllib.request
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from torchvision import datasets

from compress.data import MissingData
from compress.data.cifar import Cifar10, Cifar100
from compress.errors import ResourceError


def everything(split):
    return split.images[np.arange(len(split))].numpy()


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def dump(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A web server on this machine: the folder that it serves, and its address."""
    served = tmp_path / "served"
    served.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=served)) as server:
        Thread(target=server.serve_forever, args=(0.01,)).start()
        yield served, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def cifar(web, monkeypatch):
    """Small archives in the original layout, with their own MD5 sums."""
    served, address = web
    for kind, classes, train_files in ((datasets.CIFAR10, 10, 5), (datasets.CIFAR100, 100, 1)):
        key = "labels" if classes == 10 else "fine_labels"
        count = 2 * classes
        base = served / kind.base_folder

        def batch(seed, key=key, count=count, classes=classes):
            pixels = noise(count, 3072, seed=seed)
            return {"data": pixels, key: [n % classes for n in range(count)]}

        names = [name for name, _ in kind.train_list]
        assert len(names) == train_files
        if train_files == 1:
            count = 10 * classes
        train = [[name, dump(base / name, batch(n, count=count))] for n, name in enumerate(names)]
        test_name = kind.test_list[0][0]
        test = [[test_name, dump(base / test_name, batch(99))]]
        meta = kind.meta["filename"]
        md5 = dump(base / meta, {kind.meta["key"]: [f"class {n}" for n in range(classes)]})
        with tarfile.open(served / kind.filename, "w:gz") as archive:
            archive.add(base, kind.base_folder)
        archive_md5 = hashlib.md5((served / kind.filename).read_bytes()).hexdigest()
        monkeypatch.setattr(kind, "train_list", train)
        monkeypatch.setattr(kind, "test_list", test)
        monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5})
        monkeypatch.setattr(kind, "tgz_md5", archive_md5)
        monkeypatch.setattr(kind, "url", f"{address}/{kind.filename}")
    return served


@pytest.mark.parametrize(("kind", "train", "val", "test"), [(Cifar10, 90, 10, 20), (Cifar100, 900, 100, 200)])
def test_cifar_is_fetched_and_split(cifar, tmp_path, kind, train, val, test):
    data = kind(path=tmp_path / "data")(0)
    assert (len(data.train), len(data.val), len(data.test)) == (train, val, test)
    assert data.image == (3, 32, 32)
    assert data.class_names[3] == "class 3"
    assert data.mirror
    np.testing.assert_array_equal(everything(data.test), noise(test, 3072, seed=99).reshape(-1, 3, 32, 32))


def test_cifar_needs_no_network_once_it_is_there(cifar, tmp_path, monkeypatch):
    first = Cifar10(path=tmp_path / "data")(0)
    monkeypatch.setattr(urllib.request, "urlopen", None)
    assert Cifar10(path=tmp_path / "data")(0).fingerprint == first.fingerprint
    assert Cifar10(path=tmp_path / "data", size=16)(0).image == (3, 16, 16)


def test_cifar_from_an_archive_put_by_hand(cifar, tmp_path, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", None)
    (tmp_path / "data").mkdir()
    (cifar / "cifar-10-python.tar.gz").rename(tmp_path / "data/cifar-10-python.tar.gz")
    assert len(Cifar10(path=tmp_path / "data")(0).test) == 20


@pytest.fixture
def offline(monkeypatch):
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError(socket.gaierror(-2, "Name or service not known"))

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("kind", "archive"), [(Cifar10, "cifar-10-python"), (Cifar100, "cifar-100-python")])
def test_cifar_offline_says_where_to_put_what(tmp_path, kind, archive):
    with pytest.raises(MissingData) as caught:
        kind(path=tmp_path)(0)
    assert str(caught.value) == (
        f"{kind.__name__.upper()} is not in {tmp_path} and cannot be downloaded "
        f"([Errno -2] Name or service not known). Fetch https://www.cs.toronto.edu/~kriz/{archive}.tar.gz "
        f"on a machine with internet access, put it at {tmp_path}/{archive}.tar.gz and run again."
    )
    assert caught.value.exit_code == 3
    assert socket.getdefaulttimeout() is None


@pytest.mark.usefixtures("offline")
def test_cifar_offline_with_a_damaged_archive(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_text("<html>")
    with pytest.raises(
        MissingData, match=r"cifar-10-python\.tar\.gz is there, but damaged or not the original\. Fetch"
    ):
        Cifar10(path=tmp_path)(0)


def test_cifar_download_that_is_something_else(web, tmp_path, monkeypatch):
    served, address = web
    (served / "page.html").write_text("<html>log in to the hotel's network</html>")
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{address}/page.html")
    with pytest.raises(MissingData, match="is there, but damaged or not the original"):
        Cifar10(path=tmp_path / "data")(0)


def test_cifar_in_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(ResourceError, match=r"CIFAR10 cannot be written to .*data: File exists. Give `path` a folder"):
        Cifar10(path=tmp_path / "data")(0)


def test_cifar_connection_that_is_cut(tmp_path, monkeypatch):
    def cut(*args, **kwargs):
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(urllib.request, "urlopen", cut)
    with pytest.raises(MissingData, match=r"cannot be downloaded \(\[Errno 104\] Connection reset by peer\)"):
        Cifar10(path=tmp_path)(0)


@pytest.mark.parametrize("kind", [Cifar10, Cifar100])
def test_on_disk_says_whether_a_download_would_be_needed(kind: type[Cifar10 | Cifar100], tmp_path: Path) -> None:
    assert not kind(path=tmp_path).on_disk()
    source = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}[kind.name]
    (tmp_path / source).touch()
    assert kind(path=tmp_path).on_disk()
