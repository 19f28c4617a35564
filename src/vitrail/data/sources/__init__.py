"""Where pictures come from: one file per kind of source, all of them with the same contract."""

from vitrail.data.sources.contract import Listing, Pictures, Source, Traits
from vitrail.data.sources.folder import walk_folder
from vitrail.data.sources.kinds import holds_no_files, open_source

__all__ = ["Listing", "Pictures", "Source", "Traits", "holds_no_files", "open_source", "walk_folder"]
