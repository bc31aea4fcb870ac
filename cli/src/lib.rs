//! The mouth: everything behind the `meshctl` binary, and the namespace lab that tests share with the demo.

pub mod lab;
