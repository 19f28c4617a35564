"""Pictures on disk become a checked, divided dataset, and its splits become batches."""

from vitrail.data.curation import Leak, Pair
from vitrail.data.dataset import Dataset, Refused, Split, open_dataset, open_evaluation_set, open_manifest
from vitrail.data.find import find_pictures, load_pictures
from vitrail.data.findings import Finding, Findings
from vitrail.data.images import ImageRefusedError, display_name, open_image, prepare
from vitrail.data.loader import Batch, EvalBatch, EvalLoader, TrainLoader
from vitrail.data.planes import load_pixels
from vitrail.data.policy import AugmentPolicy, augment_policy
from vitrail.data.raster import shown
from vitrail.data.records import Record, read_manifest
from vitrail.data.sources import Traits
from vitrail.data.statistics import channel_statistics

__all__ = [
    "AugmentPolicy",
    "Batch",
    "Dataset",
    "EvalBatch",
    "EvalLoader",
    "Finding",
    "Findings",
    "ImageRefusedError",
    "Leak",
    "Pair",
    "Record",
    "Refused",
    "Split",
    "TrainLoader",
    "Traits",
    "augment_policy",
    "channel_statistics",
    "display_name",
    "find_pictures",
    "load_pictures",
    "load_pixels",
    "open_dataset",
    "open_evaluation_set",
    "open_image",
    "open_manifest",
    "prepare",
    "read_manifest",
    "shown",
]
