"""Methods of composition, one file each; see ``weightgen.compose.registry``."""
