//! The seeds of the fuzz targets, through the functions that the targets call.

use std::fs;
use std::path::Path;

#[path = "../../../../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "in its own crate it is reachable")]
mod laws;

#[test]
fn the_laws_hold_for_the_seeds() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    for (name, law) in laws::LAWS {
        let target = fs::read_to_string(fuzz.join("fuzz_targets").join(name).with_extension("rs")).unwrap();
        assert!(target.contains(&format!("boute_fuzz::{name}(data)")), "{target}");
        let seeds = fs::read_dir(fuzz.join("seeds").join(name)).unwrap();
        let held = seeds.map(|seed| {
            let seed = seed.unwrap().path();
            println!("{}", seed.display());
            law(&fs::read(seed).unwrap());
        });
        assert!(held.count() > 0, "{name} has no seed");
    }
}
