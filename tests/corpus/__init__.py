"""Models of other people, taken through all that tieops does; docs/corpus.md has the table."""
