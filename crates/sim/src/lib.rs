//! Token-level discrete-event simulation of a fleet.
