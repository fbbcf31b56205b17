"""The errors a caller can act on.

```
WsiError
├── ConfigError (ValueError)        a setting is unknown, misspelt or out of range
├── UnknownNameError (KeyError)     no encoder, aggregator, objective ... of that name
├── SlideError
│   ├── SlideOpenError              no reader opens the file
│   ├── MissingMppError             the slide says nothing believable about its resolution
│   ├── NeedsUpsamplingError        the slide is coarser than the resolution asked for
│   ├── RegionError                 a region could not be decoded
│   │   └── BadTilesError           more tiles of a slide than allowed could not be decoded
│   └── StainFitError               too little tissue, or not two stains, to normalise by
├── EncoderError                    weights are absent, gated or of another shape
│   ├── WeightsError                a file of weights is not the one that was pinned
│   └── UnsafeWeightsError          a file of weights holds more than tensors, or claims too much
├── BagError
│   ├── BagMissingError (KeyError)  no valid bag of that id
│   ├── BagCorruptError             a bag contradicts its sidecar
│   ├── BagMismatchError            bags of different tilings or encoders in one set
│   ├── ForeignBagError             another tool's file cannot become a bag
│   └── UnsafeFileError             a file runs code, leads elsewhere or claims what it cannot hold
├── CohortError                     a table is contradictory or incomplete
│   └── LeakageError                one patient on two sides of a split
├── PredictionsError                a predictions table cannot be scored or compared
├── TrainingError                   training diverged or cannot start
├── ExplainError                    a model does not tell tiles apart, or a map has no place
└── ResourceError                   disk or memory ran out; a rerun resumes
    └── ReadOnlyError               a folder may not be written to
```

Every message says what, which file, and what to do next, on one line where it can.
`code` is the word shown as `error[CODE]`; `exit_code` is what the command line returns.
"""

from __future__ import annotations

from typing import ClassVar


class WsiError(Exception):
    """Base of all errors that are about the user's data, settings or machine."""

    code: ClassVar[str] = "FAILED"
    exit_code: ClassVar[int] = 1

    def __str__(self) -> str:
        # KeyError would show the repr of its argument; people should read the sentence.
        return str(self.args[0]) if self.args else self.__class__.__name__


class ConfigError(WsiError, ValueError):
    """A setting is unknown, misspelt, of the wrong type or out of range."""

    code = "CONFIG"
    exit_code = 2


class UnknownNameError(WsiError, KeyError):
    """No registered thing has the name asked for."""

    code = "NAME"
    exit_code = 2


class SlideError(WsiError):
    """Something is wrong with one slide; `reason` is the word in quarantine.csv."""

    code = "SLIDE"
    reason: ClassVar[str] = "unreadable"


class SlideOpenError(SlideError):
    """No reader opens the file; `reason` tells an unknown format from a damaged file."""

    code = "OPEN"

    def __init__(self, message: str, reason: str = "open-failed") -> None:
        super().__init__(message)
        self.reason = reason  # pyright: ignore[reportAttributeAccessIssue]


class MissingMppError(SlideError):
    """No believable resolution; `reason` is `no-mpp` or `implausible-mpp`."""

    code = "MPP"

    def __init__(self, message: str, reason: str = "no-mpp") -> None:
        super().__init__(message)
        self.reason = reason  # pyright: ignore[reportAttributeAccessIssue]


class NeedsUpsamplingError(SlideError):
    """The finest level is coarser than the resolution asked for, beyond the allowance."""

    code = "UPSAMPLING"
    reason = "needs-upsampling"


class RegionError(SlideError):
    """A region could not be decoded, even after reopening the slide."""

    code = "DECODE"
    reason = "decode-error"


class BadTilesError(RegionError):
    """More tiles of a slide than `max_bad_tiles` could not be decoded.

    Attributes:
        bad: how many, as far as was read.
    """

    def __init__(self, message: str, bad: int) -> None:
        super().__init__(message)
        self.bad = bad


class StainFitError(SlideError):
    """A slide's stains cannot be estimated: too little stained tissue, or no two stains in it."""

    code = "STAIN"
    reason = "stain-fit-failed"


class EncoderError(WsiError):
    """An encoder cannot be loaded or gives something other than it declares."""

    code = "ENCODER"
    exit_code = 2


class WeightsError(EncoderError):
    """A file of weights has another SHA-256 than the catalogue, the hub or the user says."""

    code = "WEIGHTS"
    exit_code = 5


class UnsafeWeightsError(EncoderError):
    """A file of weights holds anything but tensors, or claims more than it holds."""

    code = "UNSAFE"
    exit_code = 5


class BagError(WsiError):
    """Something is wrong with a bag or a folder of bags."""

    code = "BAG"
    exit_code = 5


class BagMissingError(BagError, KeyError):
    """No valid bag of that id: never written, unfinished, or without its sidecar."""

    code = "MISSING"


class BagCorruptError(BagError):
    """A bag file contradicts its sidecar."""

    code = "CORRUPT"


class BagMismatchError(BagError):
    """Bags of different tilings, encoders or precisions stand in one set."""

    code = "MIXED"


class ForeignBagError(BagError):
    """A slide of another tool's archive cannot become a bag; `reason` is the word in tables."""

    code = "FOREIGN"

    def __init__(self, message: str, reason: str = "unreadable") -> None:
        super().__init__(message)
        self.reason = reason


class UnsafeFileError(BagError):
    """A file could run code, leads to other files, or claims more than it can hold."""

    code = "UNSAFE"

    def __init__(self, message: str, reason: str = "unsafe") -> None:
        super().__init__(message)
        self.reason = reason


class CohortError(WsiError):
    """A slide, label or split table is contradictory or incomplete."""

    code = "COHORT"
    exit_code = 5


class LeakageError(CohortError):
    """One patient on two sides of a split."""

    code = "LEAKAGE"


class PredictionsError(WsiError):
    """A predictions table cannot be scored or compared."""

    code = "PREDICTIONS"
    exit_code = 5


class TrainingError(WsiError):
    """Training cannot start or has diverged."""

    code = "TRAINING"


class ExplainError(WsiError):
    """A model says nothing of single tiles, or a tile map cannot be placed on its slide."""

    code = "EXPLAIN"


class ResourceError(WsiError):
    """Disk or memory ran out; nothing finished was lost, and a rerun resumes."""

    code = "NOSPACE"
    exit_code = 4


class ReadOnlyError(ResourceError):
    """A folder may not be written to."""

    code = "READONLY"
