"""The code scanner: insecure code in a model's answers and in what agents write.

`scanner` gives the verdict, from rules of our own (`rules`, one TOML file a language), and from semgrep and bandit
where they are installed (`tools`). `blocks` finds code in an answer, `languages` what it is written in, `text` its
comments and strings. Patterns, not proofs: what a rule does not describe is not found, so that `clean` means that
nothing known was found by scanners that are shown to work.
"""
