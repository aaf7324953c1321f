//! Log-mel.
