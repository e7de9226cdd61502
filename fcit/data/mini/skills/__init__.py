"""The skills ``fcit-tiny`` is taught before any tuning, by what they look at; one function each: a scene, a question,
an answer.

They are the abilities that the twelve mini data sets test (finding, reading, counting, comparing,
choosing, placing), in other words and other answer formats: zero-shot scores stay low although the
knowledge is learnt, as with a real instruction-tuned model. Some answers have a house style (an
article, colour before shape) that the data sets do not use.
"""
