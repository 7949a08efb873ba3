"""Examples that the package brings along: ``tieops demo --train`` runs them."""
