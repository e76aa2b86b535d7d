"""Names of published checkpoints: one table of renames per family, read in order, the first prefix that fits wins."""

import re

from torch import Tensor

# published prefix -> ours; None drops a tensor that no computation reads
TEXTDIFFS_RENAMES: tuple[tuple[str, str | None], ...] = (
    (r"clip\.(text|vision)_model\.embeddings\.position_ids$", None),
    (r"textdiffs\.diffusion\.run_diffusion\.(student|teacher)_model\.position_ids$", None),
    (r"textdiffs\.diffusion\.diff_proj\.", None),
    (r"textdiffs\.diffusion\.run_diffusion\.student_model\.", "text_diffusion.student."),
    (r"textdiffs\.diffusion\.run_diffusion\.teacher_model\.", "text_diffusion.teacher."),
    (r"textdiffs\.diffusion\.", "text_diffusion."),
)
PUBLISHED_TEXTDIFFS_PREFIX = "textdiffs."


def is_published_textdiffs(state: dict[str, Tensor]) -> bool:
    """Whether the names are those of a published TextDiffs checkpoint."""
    return any(name.startswith(PUBLISHED_TEXTDIFFS_PREFIX) for name in state)


def rename_published(
    state: dict[str, Tensor], renames: tuple[tuple[str, str | None], ...] = TEXTDIFFS_RENAMES
) -> dict[str, Tensor]:
    """Published names -> ours. Names that no row covers are kept, so that strict loading can complain about them."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in renames:
            if match := re.match(pattern, name):
                if replacement is not None:
                    renamed[replacement + name[match.end() :]] = tensor
                break
        else:
            renamed[name] = tensor
    return renamed
