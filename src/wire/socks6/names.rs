//! Names and addresses from text: the wire form of a name is ASCII.
//!
//! What to read: RFC 3492 (Punycode) §6.3, RFC 5890 §2.3.2.1 (A-labels).

use std::error::Error;
use std::fmt;
use std::net::Ipv4Addr;

use crate::wire::{Address, AddressError, Host, Name};

/// Why a name has no form in ASCII.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToAsciiError;

/// The name with A-labels (`xn--…`) for labels that are not ASCII, which are made lower case first. Nothing else of
/// Unicode's preparation (UTS 46) is done, so a name typed in an unusual form may come out as another.
///
/// # Errors
///
/// The result is longer than a name can be, or isn't one.
pub fn to_ascii(name: &Name) -> Result<Name, ToAsciiError> {
    if name.as_str().is_ascii() {
        return Ok(name.clone());
    }
    let mut ascii = String::new();
    for (position, label) in name.as_str().split('.').enumerate() {
        if position > 0 {
            ascii.push('.');
        }
        if label.is_ascii() {
            ascii.push_str(label);
        } else {
            ascii.push_str("xn--");
            punycode(&label.to_lowercase(), &mut ascii).ok_or(ToAsciiError)?;
        }
    }
    ascii.parse().map_err(|_| ToAsciiError)
}

/// Reads `host:port` as [`Address`] does, with two differences: no host is `0.0.0.0`, as in `:0` for any address to
/// bind; and the name comes out in ASCII.
///
/// # Errors
///
/// As for [`Address`]; a name without a form in ASCII counts as too long.
pub fn address_from_text(text: &str) -> Result<Address, AddressError> {
    if text.starts_with(':') && !text.starts_with("::") {
        let host = Host::Ip(Ipv4Addr::UNSPECIFIED.into());
        let Address { port, .. } = format!("0.0.0.0{text}").parse()?;
        return Ok(Address::new(host, port));
    }
    let mut address: Address = text.parse()?;
    if let Host::Name(name) = &address.host {
        let ascii = to_ascii(name).map_err(|_| crate::wire::NameError::TooLong)?;
        address.host = Host::Name(ascii);
    }
    Ok(address)
}

/// Appends the Punycode of a label; `None` if its numbers don't fit.
fn punycode(label: &str, out: &mut String) -> Option<()> {
    let basic = label.chars().filter(char::is_ascii);
    let basic_count = u32::try_from(basic.clone().count()).ok()?;
    out.extend(basic);
    if basic_count > 0 {
        out.push('-');
    }
    let total = u32::try_from(label.chars().count()).ok()?;
    let (mut code, mut delta, mut bias) = (INITIAL_CODE, 0_u32, INITIAL_BIAS);
    let mut done = basic_count;
    while done < total {
        let next = label.chars().map(u32::from).filter(|&c| c >= code).min()?;
        delta = delta.checked_add((next - code).checked_mul(done + 1)?)?;
        code = next;
        for c in label.chars().map(u32::from) {
            if c < code {
                delta = delta.checked_add(1)?;
            }
            if c == code {
                write_number(delta, bias, out);
                bias = adapt(delta, done + 1, done == basic_count);
                delta = 0;
                done += 1;
            }
        }
        delta = delta.checked_add(1)?;
        code += 1;
    }
    Some(())
}

fn write_number(mut number: u32, bias: u32, out: &mut String) {
    let mut position = BASE;
    loop {
        let threshold = position.saturating_sub(bias).clamp(T_MIN, T_MAX);
        if number < threshold {
            out.push(digit(number));
            return;
        }
        out.push(digit(threshold + (number - threshold) % (BASE - threshold)));
        number = (number - threshold) / (BASE - threshold);
        position += BASE;
    }
}

fn digit(value: u32) -> char {
    // 0 to 25 are letters, 26 to 35 are figures.
    char::from_digit((value + 10) % BASE, BASE).unwrap_or('a')
}

const fn adapt(delta: u32, count: u32, first: bool) -> u32 {
    let mut delta = if first { delta / DAMP } else { delta / 2 };
    delta += delta / count;
    let mut position = 0;
    while delta > (BASE - T_MIN) * T_MAX / 2 {
        delta /= BASE - T_MIN;
        position += BASE;
    }
    position + (BASE - T_MIN + 1) * delta / (delta + SKEW)
}

impl fmt::Display for ToAsciiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the name is too long in ASCII")
    }
}

impl Error for ToAsciiError {}

// RFC 3492 §5.
const BASE: u32 = 36;
const T_MIN: u32 = 1;
const T_MAX: u32 = 26;
const SKEW: u32 = 38;
const DAMP: u32 = 700;
const INITIAL_BIAS: u32 = 72;
const INITIAL_CODE: u32 = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_get_their_ascii_form() {
        // The second and the last are samples (B) and (D) of RFC 3492 §7.1.
        for (name, ascii) in [
            ("Example.com", "Example.com"),
            ("他们为什么不说中文", "xn--ihqwcrb4cv8a8dqg056pqjye"),
            ("www.bücher.example.", "www.xn--bcher-kva.example."),
            ("BÜCHER", "xn--bcher-kva"),
            ("苟", "xn--ui1a"),
            (
                "pročprostěnemluvíčesky",
                "xn--proprostnemluvesky-uyb24dma41a",
            ),
        ] {
            let name: Name = name.parse().unwrap();
            assert_eq!(to_ascii(&name).unwrap().as_str(), ascii);
        }
        let long: Name = "ü".repeat(120).parse().unwrap();
        let ascii = to_ascii(&long).unwrap();
        assert!(ascii.as_str().len() <= Name::MAX_LEN);
    }
}
