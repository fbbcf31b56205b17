"""What vendors' TIFFs say about themselves: the descriptions by which OpenSlide knows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Dress = Literal["generic", "aperio", "philips", "leica", "trestle", "ome"]

_LEICA_MARGIN_NM = 100_000
_UNSTATED_MPP = {"leica": 0.5, "philips": 0.25}


@dataclass(frozen=True)
class Scan:
    """What a description tells of a slide.

    Attributes:
        sizes: (w, h) of every level, finest first.
        downsamples: level-0 pixels per level pixel (x, y) of every level.
        mpp: um per level-0 pixel (x, y), or None to state nothing.
        offset0: level-0 position of the scan on the glass.
    """

    sizes: tuple[tuple[int, int], ...]
    downsamples: tuple[tuple[float, float], ...]
    mpp: tuple[float, float] | None
    magnification: float
    tile: tuple[int, int]
    offset0: tuple[float, float] = (0, 0)


def description(dress: Dress, scan: Scan, level: int) -> str | None:
    """Return the ImageDescription of one level, or None where the vendor writes none."""
    return _DESCRIPTIONS[dress](scan, level)


SOFTWARE: dict[Dress, str] = {"philips": "Philips DP v1.0", "trestle": "MedScan"}
"""The Software tag, for the vendors that are known by it."""


def _generic(scan: Scan, level: int) -> str | None:
    return None


def _aperio(scan: Scan, level: int) -> str:
    (w0, h0), (w, h) = scan.sizes[0], scan.sizes[level]
    shape = f"{w0}x{h0} [0,0 {w0}x{h0}] ({scan.tile[0]}x{scan.tile[1]})"
    if level:
        shape += f" -> {w}x{h}"
    stated = f"|MPP = {scan.mpp[0]}" if scan.mpp else ""
    power = f"|AppMag = {scan.magnification:g}"
    return f"Aperio Image Library v11.0.0\n{shape} JPEG/RGB Q=85{power}{stated}"


def _trestle(scan: Scan, level: int) -> str:
    overlaps = " ".join("0 0" for _ in scan.sizes)
    return f"Objective Power={scan.magnification:g};JPEG Quality=85;OverlapsXY={overlaps}"


def _leica(scan: Scan, level: int) -> str | None:
    if level:
        return None
    (w, h), mpp = scan.sizes[0], _mpp(scan, "leica")
    nm = round(mpp[0] * 1000 * w), round(mpp[1] * 1000 * h)
    offset = round(mpp[0] * 1000 * scan.offset0[0]), round(mpp[1] * 1000 * scan.offset0[1])
    # The glass must be larger than the scan, or the scan is taken for the macro image.
    glass = nm[0] + offset[0] + _LEICA_MARGIN_NM, nm[1] + offset[1] + _LEICA_MARGIN_NM
    dimensions = "".join(
        f'<dimension sizeX="{a}" sizeY="{b}" r="{k}" ifd="{k}"/>'
        for k, (a, b) in enumerate(scan.sizes)
    )
    return (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" '
        f'uuid="urn:uuid:1"><collection name="c" uuid="urn:uuid:2" sizeX="{glass[0]}" '
        f'sizeY="{glass[1]}"><image name="image_0000" uuid="urn:uuid:3">'
        "<creationDate>2000-01-01T00:00:00Z</creationDate>"
        '<device model="Leica SCN400" version="1"/>'
        f'<pixels sizeX="{w}" sizeY="{h}">{dimensions}</pixels>'
        f'<view sizeX="{nm[0]}" sizeY="{nm[1]}" offsetX="{offset[0]}" offsetY="{offset[1]}" '
        'spacingZ="0"/><scanSettings><objectiveSettings>'
        f"<objective>{scan.magnification:g}</objective></objectiveSettings>"
        "<illuminationSettings><numericalAperture>0.4</numericalAperture>"
        "<illuminationSource>brightfield</illuminationSource></illuminationSettings>"
        "</scanSettings></image></collection></scn>"
    )


def _philips(scan: Scan, level: int) -> str | None:
    if level:
        return None

    def attribute(name: str, group: str, element: str, kind: str, value: str) -> str:
        return (
            f'<Attribute Name="{name}" Group="{group}" Element="{element}" PMSVR="{kind}">'
            f"{value}</Attribute>"
        )

    def spacing(k: int) -> str:
        mm = [m / 1000 * d for m, d in zip(_mpp(scan, "philips"), scan.downsamples[k], strict=True)]
        quoted = " ".join(f"&quot;{value:.9f}&quot;" for value in reversed(mm))  # row, column
        return attribute("DICOM_PIXEL_SPACING", "0x0028", "0x0030", "IDoubleArray", quoted)

    representations = "".join(
        '<DataObject ObjectType="PixelDataRepresentation">'
        + spacing(k)
        + attribute("PIIM_PIXEL_DATA_REPRESENTATION_NUMBER", "0x1001", "0x8B01", "IUInt16", str(k))
        + "</DataObject>"
        for k in range(len(scan.sizes))
    )
    image = (
        '<DataObject ObjectType="DPScannedImage">'
        + attribute("PIM_DP_IMAGE_TYPE", "0x301D", "0x1004", "IString", "WSI")
        + spacing(0)
        + attribute(
            "PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE",
            "0x1001",
            "0x8B00",
            "IDataObjectArray",
            f"<Array>{representations}</Array>",
        )
        + "</DataObject>"
    )
    return (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        + attribute("DICOM_MANUFACTURER", "0x0008", "0x0070", "IString", "synthetic")
        + attribute(
            "PIM_DP_SCANNED_IMAGES",
            "0x301D",
            "0x1003",
            "IDataObjectArray",
            f"<Array>{image}</Array>",
        )
        + "</DataObject>"
    )


def _ome(scan: Scan, level: int) -> str | None:
    if level:
        return None
    w, h = scan.sizes[0]
    physical = (
        f'PhysicalSizeX="{scan.mpp[0]}" PhysicalSizeXUnit="um" '
        f'PhysicalSizeY="{scan.mpp[1]}" PhysicalSizeYUnit="um" '
        if scan.mpp
        else ""
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" '
        f'{physical}SizeX="{w}" SizeY="{h}" SizeC="3" SizeZ="1" SizeT="1" Interleaved="true">'
        '<Channel ID="Channel:0:0" SamplesPerPixel="3"/>'
        '<TiffData IFD="0" PlaneCount="1"/></Pixels></Image></OME>'
    )


def _mpp(scan: Scan, dress: str) -> tuple[float, float]:
    """Return a resolution for headers that do not stand without one."""
    return scan.mpp or (_UNSTATED_MPP[dress], _UNSTATED_MPP[dress])


_DESCRIPTIONS: dict[Dress, Callable[[Scan, int], str | None]] = {
    "generic": _generic,
    "aperio": _aperio,
    "philips": _philips,
    "leica": _leica,
    "trestle": _trestle,
    "ome": _ome,
}
