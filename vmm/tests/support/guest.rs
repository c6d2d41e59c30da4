//! Guests of a few instructions: 32-bit code in an ELF file with a PVH note.

/// Where the code is loaded and entered.
pub const ENTRY: u32 = 0x10_0000;
/// The serial console's data port.
pub const CONSOLE: u16 = 0x3f8;
/// The port that ends the VM.
pub const EXIT: u16 = 0x600;
/// The keyboard controller's command port.
pub const I8042: u16 = 0x64;

/// Assembles 32-bit instructions, in the order in which its methods are called.
#[derive(Clone, Default)]
pub struct Code {
    bytes: Vec<u8>,
}

impl Code {
    pub fn new() -> Self {
        Self::default()
    }

    /// Instructions as bytes.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self
    }

    fn raw_with(self, opcode: &[u8], operand: u32) -> Self {
        self.raw(opcode).raw(&operand.to_le_bytes())
    }

    /// `mov dx, port`
    fn port(self, port: u16) -> Self {
        self.raw(&[0x66, 0xba]).raw(&port.to_le_bytes())
    }

    /// `mov al, value; out dx, al`
    pub fn out(self, port: u16, value: u8) -> Self {
        self.port(port).raw(&[0xb0, value, 0xee])
    }

    /// `in al, dx`
    pub fn read_port(self, port: u16) -> Self {
        self.port(port).raw(&[0xec])
    }

    /// `out dx, al` to the console.
    pub fn print_al(self) -> Self {
        self.port(CONSOLE).raw(&[0xee])
    }

    /// Prints four bytes of EAX, the lowest first.
    pub fn print_eax(self) -> Self {
        // shr eax, 8 in between.
        (0..4).fold(self, |code, _| code.print_al().raw(&[0xc1, 0xe8, 8]))
    }

    /// Prints text that is kept in the code, over which it jumps.
    pub fn print(self, text: &str) -> Self {
        let length = u32::try_from(text.len()).unwrap();
        let code = self.raw_with(&[0xe9], length);
        let address = ENTRY + u32::try_from(code.bytes.len()).unwrap();
        code.raw(text.as_bytes()).raw_with(&[0xbe], address).raw_with(&[0xb9], length).print_esi()
    }

    /// Prints ECX bytes from ESI: `cld; rep outsb`
    pub fn print_esi(self) -> Self {
        self.port(CONSOLE).raw(&[0xfc, 0xf3, 0x6e])
    }

    /// Prints memory.
    pub fn print_memory(self, address: u32, length: u32) -> Self {
        self.raw_with(&[0xbe], address).raw_with(&[0xb9], length).print_esi()
    }

    /// `mov eax, [address]`
    pub fn load(self, address: u32) -> Self {
        self.raw_with(&[0xa1], address)
    }

    /// `mov dword [address], value`
    pub fn store(self, address: u32, value: u32) -> Self {
        self.raw_with(&[0xc7, 0x05], address).raw(&value.to_le_bytes())
    }

    /// `mov ecx, register; rdmsr`: EDX and EAX
    pub fn read_msr(self, register: u32) -> Self {
        self.raw_with(&[0xb9], register).raw(&[0x0f, 0x32])
    }

    /// `mov ecx, register; xor eax, eax; xor edx, edx; wrmsr`
    pub fn clear_msr(self, register: u32) -> Self {
        self.raw_with(&[0xb9], register).raw(&[0x31, 0xc0, 0x31, 0xd2, 0x0f, 0x30])
    }

    /// Waits until the word at `address` is not zero: `mov eax, [address]; test eax, eax; jz back`
    pub fn wait_for(self, address: u32) -> Self {
        self.load(address).raw(&[0x85, 0xc0, 0x74, 0xf7])
    }

    /// Waits until the word at `address` is zero: `mov eax, [address]; test eax, eax; jnz back`
    pub fn wait_for_zero(self, address: u32) -> Self {
        self.load(address).raw(&[0x85, 0xc0, 0x75, 0xf7])
    }

    /// Where the next instruction is, from the start of the code.
    pub fn here(&self) -> usize {
        self.bytes.len()
    }

    /// `jmp` to what [`here`](Self::here) said.
    pub fn jump(self, to: usize) -> Self {
        let distance = i32::try_from(to).unwrap() - i32::try_from(self.bytes.len() + 5).unwrap();
        self.raw_with(&[0xe9], distance.cast_unsigned())
    }

    /// Ends the VM in good order.
    pub fn shut_down(self) -> Self {
        self.out(EXIT, 1).halt()
    }

    /// `cli; hlt` for ever.
    pub fn halt(self) -> Self {
        self.raw(&[0xfa, 0xf4, 0xeb, 0xfd])
    }

    /// `jmp $`
    pub fn spin(self) -> Self {
        self.raw(&[0xeb, 0xfe])
    }

    /// An exception without an interrupt table: `lidt [six zero bytes]; ud2`
    pub fn triple_fault(self) -> Self {
        let code = self.raw_with(&[0xe9], 6);
        let table = ENTRY + u32::try_from(code.bytes.len()).unwrap();
        code.raw(&[0; 6]).raw_with(&[0x0f, 0x01, 0x1d], table).raw(&[0x0f, 0x0b])
    }

    /// The code alone.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// An ELF file of this code.
    pub fn kernel(&self) -> Vec<u8> {
        Elf::new(&self.bytes).build()
    }
}

/// An ELF file: segments and perhaps a PVH note.
pub struct Elf {
    segments: Vec<(u32, Vec<u8>)>,
    entry: Option<u32>,
    bss: u64,
}

impl Elf {
    pub fn new(code: &[u8]) -> Self {
        Self { segments: vec![(ENTRY, code.to_vec())], entry: Some(ENTRY), bss: 0 }
    }

    pub fn segment(mut self, address: u32, bytes: &[u8]) -> Self {
        self.segments.push((address, bytes.to_vec()));
        self
    }

    pub fn pvh_entry(mut self, entry: Option<u32>) -> Self {
        self.entry = entry;
        self
    }

    /// Memory behind each segment that the file does not hold.
    pub fn bss(mut self, bytes: u64) -> Self {
        self.bss = bytes;
        self
    }

    pub fn build(&self) -> Vec<u8> {
        const HEADER: usize = 64;
        const PROGRAM_HEADER: usize = 56;
        let note = self.entry.map(|entry| {
            let fields = [4_u32, 4, 18].map(u32::to_le_bytes).concat();
            [fields, b"Xen\0".to_vec(), entry.to_le_bytes().to_vec()].concat()
        });
        let count = self.segments.len() + usize::from(note.is_some());
        let mut data_at = HEADER + count * PROGRAM_HEADER;
        let (mut headers, mut data) = (Vec::new(), Vec::new());
        let mut add = |kind: u32, address: u64, bytes: &[u8], bss: u64| {
            headers.extend([kind, 7].map(u32::to_le_bytes).concat());
            let length = bytes.len() as u64;
            let fields = [data_at as u64, address, address, length, length.saturating_add(bss), 4];
            headers.extend(fields.map(u64::to_le_bytes).concat());
            data.extend(bytes);
            data_at += bytes.len();
        };
        for (address, bytes) in &self.segments {
            add(1, u64::from(*address), bytes, self.bss);
        }
        if let Some(note) = &note {
            add(4, 0, note, 0);
        }
        let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
        file.resize(16, 0);
        file.extend([2_u16, 62].map(u16::to_le_bytes).concat());
        file.extend(1_u32.to_le_bytes());
        file.extend([u64::from(ENTRY), HEADER as u64, 0].map(u64::to_le_bytes).concat());
        file.extend(0_u32.to_le_bytes());
        let sizes = [HEADER, PROGRAM_HEADER, count, 0, 0, 0].map(|n| u16::try_from(n).unwrap().to_le_bytes());
        file.extend(sizes.concat());
        [file, headers, data].concat()
    }
}
