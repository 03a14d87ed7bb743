"""DICOM files for the tests, as pydicom writes them. Imported only where pydicom is installed."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid


def dataset(pixels: NDArray[Any], bits: int | None = None, **elements: object) -> Dataset:
    """A radiograph; elements replace those of a plain one, and None leaves one out."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    made.file_meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.3680043.8.498.7"
    allocated = pixels.dtype.itemsize * 8
    plain: dict[str, object] = {
        "SOPClassUID": DigitalXRayImageStorageForPresentation,
        "SOPInstanceUID": "1.2.826.0.1.3680043.8.498.7",
        "StudyInstanceUID": generate_uid(entropy_srcs=["study"]),
        "PatientName": "Canary^Patient",
        "PatientID": "canary-4711",
        "Modality": "DX",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": allocated,
        "BitsStored": bits or allocated,
        "HighBit": (bits or allocated) - 1,
        "PixelRepresentation": int(np.issubdtype(pixels.dtype, np.signedinteger)),
        "BurnedInAnnotation": "NO",
    }
    for name, value in (plain | elements).items():
        if value is not None:
            setattr(made, name, value)
    made.PixelData = pixels.tobytes()
    made["PixelData"].VR = "OW" if allocated == 16 else "OB"
    return made


def as_bytes(made: Dataset) -> bytes:
    buffer = io.BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def dicom(pixels: NDArray[Any], bits: int | None = None, **elements: object) -> bytes:
    """The file of `dataset`."""
    return as_bytes(dataset(pixels, bits, **elements))


def lookup_table(table: NDArray[Any], first: int, bits: int) -> list[Dataset]:
    """A Modality or VOI LUT Sequence."""
    item = Dataset()
    item.add_new(0x00283002, "US" if first >= 0 else "SS", [len(table) % 65536, first, bits])
    item.add_new(0x00283006, "OW", table.astype("<u2").tobytes())
    return [item]
