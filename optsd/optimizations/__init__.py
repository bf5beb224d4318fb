"""The techniques, one file each. `optsd.variants.TECHNIQUES` names them; nothing is imported until one is used."""
