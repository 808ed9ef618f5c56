"""The page ``nanogpt explain init`` in German; its numbers are those of the English one."""

from __future__ import annotations

from typing import Final

from nanogpt_cli.explain.concept import ClaimWords, PictureWords, Words
from nanogpt_cli.explain.page import Action

GERMAN: Final = Words(
    "Womit beginnt ein GPT, und warum gerade so?",
    (),
    (Action("Ist meine Initialisierung in Ordnung? Theorie und Messung je Schicht:",
            "nanogpt init-inspect"),
     Action("Warum 0,02 und warum 1/√(2L) (englisch):", "nanogpt explain std")),
    (
        ("Tensor", "Startwerte", "Grund"),
        ("Tokentabelle = Kopf", "{wte}", "Logit-Streuung {logit_std:.2f}; Verlust {loss:.2f} = "
         "ln V + {excess:.2f}"),
        ("Positionstabelle", "{wpe}", "{token_share:.0%} der Varianz stammen anfangs vom Token"),
        ("q, k, v, MLP-Eingang", "{linear}", "eine Norm legt die Größe ihrer Eingabe fest"),
        ("beide Projektionen", "{proj}", "die Summe der {branches} Zweige hängt "
         "{branches_alike:nicht von L ab|von L ab}"),
        ("Normgewicht; Bias", "{gain}; {bias}", "{neutral:anfangs neutral: weder "
         "Faktor noch Versatz|nicht neutral: der Start skaliert oder verschiebt}"),
    ),
    PictureWords("RMS des Residualstroms vom Embedding bis Block {L}",
                 ("{scheme} ×{growth:.1f}", "unskaliert (normal) ×{growth_unscaled:.1f}"), True),
    (
        ClaimWords("times", "Projektionen: weight *= 0.02",
                   "neu gezogen, Streuung {proj_std:.2g}; so wären es {times_002:.2g}"),
        ClaimWords("root", "… oder weight *= sqrt(2/n_layers)",
                   "so wären es {sqrt_2L:.2g}, das Doppelte von 0.02/√(2L)"),
        ClaimWords("width", "lineare Schichten: 0.02/sqrt(n_embd)",
                   "Streuung {fc_std:.2g}; so wären es {per_width:.2g}"),
        ClaimWords("relu", "ReLU kommt nicht vor",
                   "{activation}: {silent:.0%} nahe null; bei ReLU wären es {silent_relu:.0%}"),
        ClaimWords("variance", "Varianz explodiert/verschwindet nicht",
                   "×{growth:.1f} bei L={L}, ×{growth_other:.1f} bei {other:.0f}; unskaliert "
                   "×{growth_unscaled:.1f}, ×{growth_other_unscaled:.1f}"),
        ClaimWords("warmup", "deshalb geht es ohne Warmup",
                   "Schritt 1, lr {lr:g}: {step_proj:.0%} eines Gewichts, unskaliert "
                   "{step_plain:.0%}"),
    ),
)  # fmt: skip
