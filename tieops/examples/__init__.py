"""Examples that ship with the package; ``tieops demo --train`` runs them."""
