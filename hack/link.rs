//! Build script of the three binaries. They are position independent, so that an attacker does not know
//! where what is; the table of what is to be relocated then takes 24 bytes an address, and is read whole
//! at every start. Packed, it takes hardly any.

fn main() {
    println!("cargo::rerun-if-changed=../../hack/link.rs");
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
}
