"""The configuration of `shards`: which dataset is read, and which of its samples are taken."""

from dataclasses import dataclass, field

from mapstack.config_files import at_least, one_of
from mapstack.errors import ConfigError

DATASETS = ("folder", "mimic_cxr", "ms_cxr", "chexpert", "nih", "vindr", "rsna")
"""What `source` may name beside "phantom"; see docs/mimic_cxr.md and the modules of `train_like.datasets`."""

COLUMNS = (
    "path",
    "id",
    "labels",
    "report",
    "split",
    "view",
    "patient",
    "label",
    "prompt",
    "x",
    "y",
    "width",
    "height",
    "x_min",
    "y_min",
    "x_max",
    "y_max",
)
"""What a column of a table of your own may mean."""


@dataclass
class DatasetConfig:
    """A dataset on disk, and which of its samples are taken.

    Attributes:
        root: Its folder, laid out as its publisher does.
        images: Where its pictures are, if not below `root`: of MS-CXR the folder of MIMIC-CXR-JPG.
        image_suffix: Of MIMIC-CXR's pictures, "jpg" or "dcm".
        reports: MIMIC-CXR's reports: the folder, or `mimic-cxr-reports.zip` as it is.
        table: Of a plain folder, the CSV file with a row a picture or a row a box; None for pictures alone.
        columns: Its columns, `{meaning: name}`, where an empty name leaves one out; meanings are path, id, labels,
            report, split, view, patient; and of a box label, prompt and x, y, width, height, or x_min, y_min, x_max,
            y_max.
        separator: What stands between two labels in its column `labels`.
        labeller: Whose labels MIMIC-CXR's samples get: "chexpert", "negbio", or "radiologist" (the test split, from
            release 2.1.0 of MIMIC-CXR-JPG on).
        uncertain: What a label of -1 becomes: "apart" lists it under `uncertain` and not under `labels`; "positive"
            and "negative" decide.
        min_readers: A label of VinDr-CXR's training set counts from so many of its three radiologists on.
        splits: Which of the publisher's splits are taken; None for all.
        views: "frontal", "lateral" or "all"; datasets that do not tell the view have frontal pictures only.
        absent: A file that is not there: "fail" lists it and ends with exit code 1, "leave_out" takes the samples from
            those that are there.
        rename: Labels to call otherwise, `{theirs: ours}`; an empty name drops the label.
        check: "header" looks at a file's header, checksums and end; "decode" also decodes its pixels, several times
            slower. `extract` decodes in any case and names what it cannot.
        accept_burned_in: Take DICOM files whose Burned In Annotation (0028,0301) is not NO.
        keep_dicom: Store DICOM files as they are, header included, in place of their pixels as PNG.
        terms: What the data use agreement asks, written into dataset.json.
    """

    root: str = ""
    images: str | None = None
    image_suffix: str = "jpg"
    reports: str | None = None
    table: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    separator: str = "|"
    labeller: str = "chexpert"
    uncertain: str = "apart"
    min_readers: int = 2
    splits: list[str] | None = None
    views: str = "frontal"
    absent: str = "fail"
    rename: dict[str, str] = field(default_factory=dict)
    check: str = "header"
    accept_burned_in: bool = False
    keep_dicom: bool = False
    terms: str = ""

    def __post_init__(self) -> None:
        one_of("dataset.image_suffix", self.image_suffix, ("jpg", "dcm"))
        one_of("dataset.labeller", self.labeller, ("chexpert", "negbio", "radiologist"))
        one_of("dataset.uncertain", self.uncertain, ("apart", "positive", "negative"))
        one_of("dataset.views", self.views, ("frontal", "lateral", "all"))
        one_of("dataset.absent", self.absent, ("fail", "leave_out"))
        one_of("dataset.check", self.check, ("header", "decode"))
        at_least("dataset.min_readers", self.min_readers, 1)
        for meaning in self.columns:
            one_of("dataset.columns", meaning, COLUMNS)
        if self.separator == "":
            raise ConfigError("dataset.separator is empty; it stands between two labels; write '|'.")
