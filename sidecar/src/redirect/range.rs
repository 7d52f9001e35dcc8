//! Ports and address ranges, as flags name them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use thiserror::Error;

/// Ports from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    /// At least 1.
    pub first: u16,
    /// At least `first`.
    pub last: u16,
}

/// A text that names no ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("neither a port nor FIRST-LAST")]
pub struct NoPorts;

/// A text that names no addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("neither an address nor ADDRESS/LENGTH")]
pub struct NoNetwork;

impl Ports {
    /// One port.
    #[must_use]
    pub fn one(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// The same ports in order, none twice: what touches or overlaps becomes one.
    #[must_use]
    pub fn merged(mut ranges: Vec<Self>) -> Vec<Self> {
        ranges.sort_unstable();
        let mut merged: Vec<Self> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(last) if u32::from(range.first) <= u32::from(last.last) + 1 => {
                    last.last = last.last.max(range.last)
                }
                _ => merged.push(range),
            }
        }
        merged
    }
}

impl FromStr for Ports {
    type Err = NoPorts;

    fn from_str(text: &str) -> Result<Self, NoPorts> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |digits: &str| digits.trim().parse::<u16>().map_err(|_not_a_port| NoPorts);
        let ports = Self { first: number(first)?, last: number(last)? };
        if (1..=ports.last).contains(&ports.first) { Ok(ports) } else { Err(NoPorts) }
    }
}

/// Addresses that share their first bits; the others are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Network {
    address: IpAddr,
    length: u8,
}

impl Network {
    /// One address.
    #[must_use]
    pub fn one(address: IpAddr) -> Self {
        Self { address, length: bits(address) }
    }

    /// IPv6, not IPv4.
    #[must_use]
    pub fn is_v6(&self) -> bool {
        self.address.is_ipv6()
    }

    /// Every address of its family.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.length == 0
    }

    /// Whether all of another's addresses are among these.
    fn covers(&self, other: &Self) -> bool {
        self.is_v6() == other.is_v6() && self.length <= other.length && cut(other.address, self.length) == self.address
    }

    /// The same addresses in order, none twice.
    #[must_use]
    pub fn merged(mut networks: Vec<Self>) -> Vec<Self> {
        networks.sort_unstable();
        let mut merged: Vec<Self> = Vec::with_capacity(networks.len());
        for network in networks {
            // Whatever covers it begins no later and is no longer, so it has been sorted before it.
            if !merged.iter().any(|wider| wider.covers(&network)) {
                merged.push(network);
            }
        }
        merged
    }
}

impl FromStr for Network {
    type Err = NoNetwork;

    fn from_str(text: &str) -> Result<Self, NoNetwork> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.trim().parse().map_err(|_not_an_address| NoNetwork)?;
        let length = match length {
            Some(digits) => digits.trim().parse().map_err(|_not_a_number| NoNetwork)?,
            None => bits(address),
        };
        if length > bits(address) {
            return Err(NoNetwork);
        }
        Ok(Self { address: cut(address, length), length })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.length == bits(self.address) {
            return self.address.fmt(out);
        }
        write!(out, "{}/{}", self.address, self.length)
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv6() { 128 } else { 32 }
}

/// The address with all but its first bits zero.
fn cut(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        for (text, first, last) in [("1", 1, 1), ("65535", 65535, 65535), ("80-90", 80, 90), ("5 - 5", 5, 5)] {
            assert_eq!(text.parse(), Ok(Ports { first, last }), "{text}");
        }
        for text in ["", "0", "0-5", "9-8", "65536", "a", "1-", "-1", "1-2-3"] {
            assert_eq!(text.parse::<Ports>(), Err(NoPorts), "{text}");
        }
        let merged = |texts: &[&str]| Ports::merged(texts.iter().map(|text| text.parse().unwrap()).collect());
        let range = |first, last| Ports { first, last };
        assert_eq!(merged(&["90", "80-85", "84-88", "89", "1", "1"]), [range(1, 1), range(80, 90)]);
        assert_eq!(merged(&["65535", "1-65534"]), [range(1, 65535)]);
    }

    #[test]
    fn networks() {
        for (text, shown) in [
            ("10.1.2.3", "10.1.2.3"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.1.2.3/32", "10.1.2.3"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("fd00:1::7/16", "fd00::/16"),
            ("::/0", "::/0"),
            ("::1", "::1"),
        ] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), shown, "{text}");
        }
        for text in ["", "10.0.0.0/33", "fd00::/129", "host", "10.0.0.0/", "10.0.0.0/-1", "/8"] {
            assert_eq!(text.parse::<Network>(), Err(NoNetwork), "{text}");
        }
        let texts = ["10.1.0.0/16", "fd00::/8", "10.0.0.0/8", "10.2.3.4", "11.0.0.0/8", "fd00::1", "10.0.0.0/8"];
        let merged = Network::merged(texts.iter().map(|text| text.parse().unwrap()).collect());
        let shown: Vec<_> = merged.iter().map(Network::to_string).collect();
        assert_eq!(shown, ["10.0.0.0/8", "11.0.0.0/8", "fd00::/8"]);
    }
}
