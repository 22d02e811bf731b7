r"""What the answer in a response is, and when it is right: one rule compares all answers.

The answer is the content of the last ``\boxed{...}``, else of the last ``<CONCLUSION>`` or
``<answer>``, else a response of one short line as a whole. It is compared with the truth in these
steps; the first that applies decides. The rule is the same both ways round and never guesses: an
answer that it does not know to be the same is wrong.

1. Around the whole text these are removed, in any order and nesting: white space, one full stop at
   the end, ``$...$``, ``$$...$$``, ``\(...\)``, ``\[...\]``, ``**...**``, double quotation marks,
   ``\boxed{...}``, font commands (``\text{...}``, ``\mathrm{...}`` and the like), and "answer:",
   "the answer is" or "option" before a letter. White space inside counts as one space. Full-width
   characters count as their ASCII forms, and U+2212 as a minus. What is then empty is no answer.
2. **Numbers** are compared by value, exactly: integers, decimals (``.5``, ``0.50``), fractions of
   integers (``1/2``, ``\frac{1}{2}``, also ``\dfrac``, ``\tfrac``, ``\cfrac``, ``\frac12``), with a
   sign and with commas (``{,}``, ``\,``) between groups of three digits, as in English. So
   ``0.333`` is not ``1/3``. Numbers with a leading zero (``007``), mixed numbers (``1 1/2``),
   scientific notation and numbers with a unit are texts. A percentage equals only percentages:
   ``50%`` is ``50.0 \%``, and neither ``50`` nor ``0.5``, since a truth without the sign does not
   say which of them it means.
3. **Texts** that are equal character by character are the same, whatever the spaces around commas.
   Case and a leading article are ignored in texts of words only (``b`` is ``B``, ``A red circle``
   is ``red circle``); next to digits and signs case counts (``5 mW``).
4. **Choices**: a single letter may be in brackets or before one, or before a colon (``(B)``,
   ``[B]``, ``B)``, ``B:`` are ``B``), and what follows it does not count against a truth that is a
   letter: ``B. red`` is ``B``, unless another option follows. A letter inside a word is none.
5. **Yes or no**: against such a truth, what follows a comma, a full stop or a dash does not count,
   unless it has the other word in it: ``No, there is none`` is ``no``.
6. **Expressions** are compared by math-verify (the extra ``eval``), where one of the two has an
   operator, a command or a bracket with a comma: ``2x+1`` is ``1+2x``, ``\sqrt{8}`` is
   ``2\sqrt{2}``, ``x=5`` is ``5``. Units are kept. What has other commands or words in it, more
   than 200 characters or 30 digits, or powers beyond a limit (``attnlens.answers.expressions``) is
   a text. An expression that takes more than ten seconds counts as wrong.

Texts of more than 1,000 characters are compared as they are, without white space around them.
Without math-verify, steps 1 to 5 give the same verdicts, and where step 6 would decide the verdict
is unknown: it is never another one.
"""

from __future__ import annotations

from attnlens.answers.extract import Boxed as Boxed
from attnlens.answers.extract import boxed_answer as boxed_answer
from attnlens.answers.extract import boxed_spans as boxed_spans
from attnlens.answers.extract import closing_braces as closing_braces
from attnlens.answers.extract import final_answer as final_answer
from attnlens.answers.forms import LONGEST as LONGEST
from attnlens.answers.forms import form_of as form_of
from attnlens.answers.rule import Verdict as Verdict
from attnlens.answers.rule import as_number as as_number
from attnlens.answers.rule import is_changed as is_changed
from attnlens.answers.rule import is_right as is_right
from attnlens.answers.rule import judge as judge
from attnlens.answers.rule import true_answer as true_answer
