"""Writes the same images as every kind of source."""

import gzip
import io
import json
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image


def pictures(n=20, size=32, seed=0):
    """uint8 [n, size, size, 3], no two alike."""
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def png(pixels, kind="PNG", **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def write_folder(path, images):
    path.mkdir(parents=True)
    for i, pixels in enumerate(images):
        (path / f"{i:03}.png").write_bytes(png(pixels))
    return path


def write_zip(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def zip_of(path, images, method=zipfile.ZIP_STORED):
    members = [(f"{i // 8:05}/img{i:08}.png", png(x)) for i, x in enumerate(images)]
    return write_zip(path, members, method)


def write_lmdb(path, values, keys=None):
    """A database; keys are b"0", b"1", ... unless given."""
    lmdb = pytest.importorskip("lmdb", reason="needs the package lmdb")
    path.parent.mkdir(parents=True, exist_ok=True)
    environment = lmdb.open(str(path), map_size=1 << 26)
    with environment.begin(write=True) as transaction:
        for i, value in enumerate(values):
            transaction.put(str(i).encode() if keys is None else keys[i], value)
    environment.close()
    (path / "lock.mdb").unlink()
    return path


def tar_bytes(members, **options):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def write_tars(folder, shards):
    files = [(f"train-{k:05}.tar", tar_bytes(members)) for k, members in enumerate(shards)]
    return write_files(folder, files)


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def write_parquet(path, files, labels=None, rows=8, names=None, plain=False):
    """Row groups of eight; with the class names as the hub's library writes them."""
    reason = "needs the package pyarrow"
    arrow = pytest.importorskip("pyarrow", reason=reason)
    parquet = pytest.importorskip("pyarrow.parquet", reason=reason)
    images = files if plain else [{"bytes": data, "path": None} for data in files]
    table = arrow.table({"image": images} | ({} if labels is None else {"label": labels}))
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        text = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": text})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=rows)
    return path


def cifar_batches(images, labels, per_batch):
    """Rows [n, 3072] and labels of data_batch_1 to 5, then of test_batch."""
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    for k, name in enumerate(names):
        part = slice(k * per_batch, (k + 1) * per_batch)
        yield name, rows[part], [int(label) for label in labels[part]]


def cifar_pickles(images, labels, per_batch=4):
    for name, rows, numbers in cifar_batches(images, labels, per_batch):
        batch = {b"batch_label": name.encode(), b"labels": numbers, b"data": rows}
        yield name, pickle.dumps(batch, protocol=2)


def cifar_binaries(images, labels, per_batch=4):
    for name, rows, numbers in cifar_batches(images, labels, per_batch):
        yield f"{name}.bin", np.column_stack([np.uint8(numbers), rows]).tobytes()


def write_files(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files:
        (folder / name).write_bytes(data)
    return folder


def idx(array):
    head = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


def write_idx(folder, digits, labels, part="train", packed=True):
    pack = gzip.compress if packed else bytes
    end = ".gz" if packed else ""
    files = [(f"{part}-images-idx3-ubyte{end}", pack(idx(digits)))]
    if labels is not None:
        files.append((f"{part}-labels-idx1-ubyte{end}", pack(idx(np.asarray(labels)))))
    return write_files(folder, files)
